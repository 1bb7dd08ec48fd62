"""Decides from the heartbeats of the other ranks which of them have died, hang or are stuck.

There are no threads and no sockets here: `FailureDetector.check` is given what was read and how much time has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from training.processes.heartbeat import Heartbeat, ProcessState, Timeouts, process_state

FRESH_BEATS = 3.0  # a rank that was heard of within so many heartbeats is alive
BUSY_SHARE = 0.1  # of a core; a process that uses more is at work, though its other threads may not get to speak
BUSY_FACTOR = 6.0  # such a process may be silent for so many times longer


@dataclass(frozen=True)
class Failure:
    """Why this process must end.

    `kind` is "died", "hung", "stuck", "failed", or "stopped" (no fault: asked to stop before anything was trained).
    `ranks` are the ones to blame; `announced` says that the user has read why.
    """

    kind: str
    ranks: tuple[int, ...]
    message: str
    exit_status: int = 1
    announced: bool = False


@dataclass
class _Peer:
    """Another rank: seconds since its latest heartbeat, its CPU time then, and the exchange that found it gone."""

    heartbeat: Heartbeat
    silence: float = 0.0
    cpu: float = 0.0
    gone_since: int | None = None


class FailureDetector:
    """The view that rank `rank` has of all others.

    Time counts only while this process runs and can hear: a machine that was put to sleep, or a rank 0 that does not
    answer for a while, makes nobody else look dead.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timeouts: Timeouts,
        state_of: Callable[[Heartbeat], ProcessState | None] = process_state,
    ) -> None:
        self.rank, self.size, self.timeouts, self.state_of = rank, size, timeouts, state_of
        self.collective_failed = False  # then a rank that is silent is the likely cause
        self._peers: dict[int, _Peer] = {}
        self._exchanges, self._disconnected = 0, False
        self._silence, self._still_seconds = 0.0, 0.0
        self._ticks: dict[int, int] = {}
        self._collectives = 0

    def check(
        self,
        passed: float,
        heartbeats: Mapping[int, Heartbeat],
        exchanges: int,
        disconnected: bool,
        collectives: int = 0,
    ) -> Failure | None:
        """Return the first failure found, `passed` seconds after the last check.

        `heartbeats` (this rank's own among them) were read in exchange number `exchanges` with rank 0;
        `disconnected` says that its process does not listen any more. `collectives` counts those that have finished: a
        sign of life of every rank, also where heartbeats do not get through.
        """
        all_alive = collectives != self._collectives
        heard = exchanges != self._exchanges or all_alive
        self._collectives = collectives
        self._exchanges, self._disconnected = exchanges, disconnected
        self._silence = 0.0 if heard else self._silence + passed
        heard_seconds = 0.0 if disconnected or not self._is_fresh(self._silence) else passed
        for rank, heartbeat in heartbeats.items():
            if rank != self.rank:
                self._update_peer(heartbeat, heard_seconds)
                self._peers[rank].silence *= not all_alive
        return (
            self._find_ended()
            or self._find_dead()
            or self._find_hung()
            or self._find_silent_rank0()
            or self._find_stuck(heartbeats, heard_seconds)
        )

    @property
    def in_doubt(self) -> bool:
        """Whether a process is gone, and only another exchange tells whether it had ended in order."""
        return any(peer.gone_since is not None for peer in self._running())

    def _is_fresh(self, silence: float) -> bool:
        return silence <= FRESH_BEATS * self.timeouts.beat

    def _update_peer(self, heartbeat: Heartbeat, passed: float) -> None:
        peer = self._peers.get(heartbeat.rank)
        if peer is None or heartbeat.beat != peer.heartbeat.beat:
            state = self.state_of(heartbeat)
            self._peers[heartbeat.rank] = _Peer(heartbeat, cpu=state.cpu if state else 0.0)
        else:
            peer.silence += passed

    def _running(self) -> list[_Peer]:
        return [peer for _, peer in sorted(self._peers.items()) if not peer.heartbeat.ended]

    def _rank0_has_finished(self) -> bool:
        return 0 in self._peers and self._peers[0].heartbeat.ended == "finished"

    def _find_ended(self) -> Failure | None:
        """Find a rank that has sent the others why it ends."""
        for rank, peer in sorted(self._peers.items()):
            beat = peer.heartbeat
            if beat.ended == "failed":
                message = f"{beat.name} has failed: {beat.exit_reason}"
                return Failure("failed", (rank,), message, beat.exit_status, beat.announced)
            if beat.ended == "stopped":
                return Failure("stopped", (rank,), beat.exit_reason, 0, True)
        return None

    def _find_dead(self) -> Failure | None:
        """Find processes that are gone and that no exchange begun after that shows to have ended in order."""
        dead = []
        for peer in self._running():
            state = self.state_of(peer.heartbeat)
            if state is None or not state.gone:
                peer.gone_since = None
                continue
            if peer.gone_since is None:
                peer.gone_since = self._exchanges
            exchanged = self._exchanges >= peer.gone_since + 2
            if exchanged or self._disconnected or not self._is_fresh(self._silence):
                dead.append(peer.heartbeat)
        if not dead or self._rank0_has_finished():
            return None
        have = "has" if len(dead) == 1 else "have"
        what = f"{have} died while {dead[0].activity}, perhaps killed for lack of memory (dmesg tells)"
        return _blame("died", dead, f"{_names(dead)} {what}")

    def _find_hung(self) -> Failure | None:
        silent = [peer for peer in self._running() if peer.silence >= self._allowed_silence(peer, peer.silence)]
        if not silent:
            return None
        states = [self.state_of(peer.heartbeat) for peer in silent]
        how = "its process does not run any more, or its machine is gone"
        if any(state and state.stopped for state in states):
            how = "its process is stopped"
        beats = [peer.heartbeat for peer in silent]
        what = f"gave no sign of life for {silent[0].silence:.0f} s while {beats[0].activity} ({how})"
        return _blame("hung", beats, f"{_names(beats)} {what}")

    def _allowed_silence(self, peer: _Peer, silence: float) -> float:
        state = self.state_of(peer.heartbeat)
        if state is None:
            return self.timeouts.hung / 6 if self.collective_failed else self.timeouts.hung
        at_work = not state.stopped and state.cpu - peer.cpu > BUSY_SHARE * silence
        return self.timeouts.hung * (BUSY_FACTOR if at_work else 1)

    def _find_silent_rank0(self) -> Failure | None:
        """Find that rank 0 is gone, through which everything is heard of everybody."""
        if self.rank == 0 or self._rank0_has_finished():
            return None
        peer = self._peers.get(0)
        name = peer.heartbeat.name if peer else "rank 0"
        if self._disconnected:
            if self._silence < FRESH_BEATS * self.timeouts.beat + self.timeouts.linger:
                return None
            why = "it has died, or its machine is gone, or the network between"
            return Failure("died", (0,), f"the connection to {name} is lost: {why}")
        if self._silence < (self._allowed_silence(peer, self._silence) if peer else self.timeouts.hung):
            return None
        state = self.state_of(peer.heartbeat) if peer else None
        how = " (its machine is gone, or the network between)"
        if state:
            how = "; its process is stopped" if state.stopped else ""
        message = f"{name} gave no answer for {self._silence:.0f} s{how}; its last output is in logs/rank0.log"
        return Failure("hung", (0,), message)

    def _find_stuck(self, heartbeats: Mapping[int, Heartbeat], passed: float) -> Failure | None:
        """Find that all ranks are alive and none makes progress."""
        running = [beat for beat in heartbeats.values() if not beat.ended]
        ticks = {beat.rank: beat.ticks for beat in running}
        if ticks != self._ticks or len(running) < self.size or not all(ticks.values()):
            self._ticks, self._still_seconds = ticks, 0.0
        elif all(self._is_fresh(peer.silence) for peer in self._running()) and not any(b.at_terminal for b in running):
            self._still_seconds += passed
        if self._still_seconds == 0 or self._still_seconds < max(beat.timeout for beat in running):
            return None
        stuck = _suspects(running)
        where = "; ".join(
            f"{beat.name} while {beat.activity}{beat.location and f', in {beat.location}'}" for beat in stuck
        )
        return _blame("stuck", stuck, f"nothing has moved for {self._still_seconds:.0f} s, stuck is {where}")


def _suspects(heartbeats: list[Heartbeat]) -> list[Heartbeat]:
    """Return those that do not wait for the others, or else those that have come least far."""
    suspects = [beat for beat in heartbeats if not beat.in_collective] or heartbeats
    least = min(beat.ticks for beat in suspects)
    return sorted((beat for beat in suspects if beat.ticks == least), key=lambda beat: beat.rank)


def _names(heartbeats: list[Heartbeat]) -> str:
    return " and ".join(beat.name for beat in heartbeats)


def _blame(kind: str, heartbeats: list[Heartbeat], what: str) -> Failure:
    """Return the failure of some ranks, with a message that names their logs and how to go on."""
    files = ", ".join(f"logs/rank{beat.rank}.log" for beat in heartbeats)
    hint = f"the last output is in {files} of the run, and the same command continues from the last checkpoint"
    return Failure(kind, tuple(beat.rank for beat in heartbeats), f"{what}: {hint}")

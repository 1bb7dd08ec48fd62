"""Decides from the heartbeats of the other ranks which of them have died, hang or are stuck.

Rank 0, through which all heartbeats go, judges every other rank, and the others judge rank 0. A process that is gone is
noticed by all ranks of its machine. There are no threads and no sockets here: `FailureDetector.check` is given what was
heard and how much time has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.processes.heartbeat import Failure, Heartbeat, ProcessState, Timeouts, process_state

FRESH_BEATS = 6.0  # a rank that was heard of within so many heartbeats is alive
BUSY_SHARE = 0.1  # of a core; a process that uses more is at work, though its other threads may not get to speak
BUSY_FACTOR = 6.0  # such a process may be silent for so many times longer


@dataclass
class _Peer:
    """Another rank: its CPU time at its latest heartbeat, seconds since then, whether its process was seen gone."""

    heartbeat: Heartbeat
    cpu: float = 0.0
    silence: float = 0.0
    gone: bool = False


class FailureDetector:
    """The view that rank `rank` of `size` has of all others.

    Time counts only while this process runs, so a machine that was put to sleep makes nobody else look dead.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timeouts: Timeouts,
        state_of: Callable[[Heartbeat], ProcessState | None] = process_state,
    ) -> None:
        self.rank, self.size, self.timeouts, self.state_of = rank, size, timeouts, state_of
        self._peers: dict[int, _Peer] = {}
        self._collectives: dict[int, int] = {}
        self._ticks: dict[int, int] = {}
        self._still_seconds = 0.0

    def check(self, passed: float, heartbeats: Sequence[Heartbeat], *, answered: bool, refused: bool) -> Failure | None:
        """Return the first failure found, `passed` seconds after the last check.

        `heartbeats` are the latest of all ranks, this one's among them; `answered` says whether rank 0 has answered
        since the last check, `refused` that its process does not listen any more.
        """
        collectives = {beat.rank: beat.collectives for beat in heartbeats}
        all_alive, self._collectives = collectives != self._collectives, collectives
        suspicious = any(beat.collective_failed for beat in heartbeats)
        for heartbeat in heartbeats:
            if heartbeat.rank != self.rank:
                self._update_peer(heartbeat, passed, all_alive)
        return (
            next((peer.heartbeat.failure for peer in self._peers.values() if peer.heartbeat.failure), None)
            or self._find_dead(answered, refused)
            or self._find_hung(refused, suspicious)
            or self._find_stuck(heartbeats, passed)
        )

    def _update_peer(self, heartbeat: Heartbeat, passed: float, alive: bool) -> None:
        peer = self._peers.get(heartbeat.rank)
        if peer is None or heartbeat.beat != peer.heartbeat.beat:
            state = self.state_of(heartbeat)
            self._peers[heartbeat.rank] = _Peer(heartbeat, state.cpu if state else 0.0)
        else:
            peer.silence = 0.0 if alive else peer.silence + passed

    def _is_fresh(self, peer: _Peer) -> bool:
        return peer.silence <= FRESH_BEATS * self.timeouts.beat

    def _running(self) -> list[_Peer]:
        return [peer for _, peer in sorted(self._peers.items()) if not peer.heartbeat.ended]

    def _running_rank0(self) -> _Peer | None:
        """Return rank 0 as another rank knows it; None once it has ended, and for rank 0 itself."""
        return next((peer for peer in self._running() if peer.heartbeat.rank == 0), None)

    def _find_dead(self, answered: bool, refused: bool) -> Failure | None:
        """Find processes that are gone, and that no answer since then shows to have ended in order."""
        rank0, dead = self._running_rank0(), []
        if self.rank and not rank0:
            return None  # nobody is left to say how the others have ended
        up_to_date = answered or refused or (rank0 is not None and not self._is_fresh(rank0))
        for peer in self._running():
            state = self.state_of(peer.heartbeat)
            seen_before, peer.gone = peer.gone, bool(state and state.gone)
            if peer.gone and seen_before and up_to_date:
                dead.append(peer.heartbeat)
        if not dead:
            return None
        have = "has" if len(dead) == 1 else "have"
        what = f"{have} died while {dead[0].activity}, perhaps killed for lack of memory (dmesg tells)"
        return _blame("died", dead, f"{_names(dead)} {what}")

    def _find_hung(self, refused: bool, suspicious: bool) -> Failure | None:
        """Find ranks that are silent for too long, which is less if they are suspicious."""
        rank0 = self._running_rank0()
        if rank0 and refused and rank0.silence >= FRESH_BEATS * self.timeouts.beat + self.timeouts.linger:
            why = "it has died, or its machine is gone, or the network between"
            return _blame("died", [rank0.heartbeat], f"the connection to {rank0.heartbeat.name} is lost: {why}")
        judged = self._running() if self.rank == 0 else [rank0] if rank0 else []
        silent = [peer for peer in judged if peer.silence >= self._allowed_silence(peer, suspicious)]
        if not silent:
            return None
        states = [self.state_of(peer.heartbeat) for peer in silent]
        how = "its process does not run any more"
        if any(state and state.stopped for state in states):
            how = "its process is stopped"
        elif None in states:
            how = "its machine is gone, or the network between"
        beats = [peer.heartbeat for peer in silent]
        what = f"gave no sign of life for {silent[0].silence:.0f} s while {beats[0].activity} ({how})"
        return _blame("hung", beats, f"{_names(beats)} {what}")

    def _allowed_silence(self, peer: _Peer, suspicious: bool) -> float:
        state = self.state_of(peer.heartbeat)
        if state is None:
            return self.timeouts.hung / 6 if suspicious else self.timeouts.hung
        at_work = not state.stopped and state.cpu - peer.cpu > BUSY_SHARE * peer.silence
        return self.timeouts.hung * (BUSY_FACTOR if at_work else 1)

    def _find_stuck(self, heartbeats: Sequence[Heartbeat], passed: float) -> Failure | None:
        """Find that all ranks are alive and none makes progress."""
        if self.rank:
            return None
        running = [beat for beat in heartbeats if not beat.ended]
        ticks = {beat.rank: beat.ticks for beat in running}
        if ticks != self._ticks or len(running) < self.size or not all(ticks.values()):
            self._ticks, self._still_seconds = ticks, 0.0
        elif all(map(self._is_fresh, self._running())) and not any(beat.at_terminal for beat in running):
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

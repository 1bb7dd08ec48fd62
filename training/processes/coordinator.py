"""Rank 0's coordinator: who takes part in a run, what became of its preparation, and what every rank said last.

The other ranks ask it again and again (rendezvous.py), and are answered with a state: "waiting" for others, "met", then
"ready", "failed" or "stopped" when rank 0 has prepared the run; "refused", or "busy" with another run. From "met" on
their watchdogs exchange heartbeats through it.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

import psutil

from common.errors import UserError
from training.processes.agreement import difference
from training.processes.heartbeat import Heartbeat, RankProcess, process_state
from training.processes.launchers import hosts_of_ranks, launcher_identity, machine_index, rendezvous_port
from training.processes.stopping import StoppedEarly

# Seconds
SAME_LAUNCH = 20.0  # within which one launch starts its processes on all machines
SUCCESSOR = 20.0  # for the rank of this launch to come where one that was started at another time is there
POLL = 0.2
REMARKS = 15  # while rank 0 waits for others, until it gives up

NAMED = 8  # ranks in a message


@dataclass(frozen=True)
class Participant(RankProcess):
    """What a rank says of itself when it asks to take part."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What must be the same on all ranks (agreement.py)."""
    reached: str = ""
    """Address at which it has found rank 0, as rank 0 knows it."""
    problem: str = ""
    """Why it cannot take part."""
    stopped: bool = False
    """Whether it was asked to stop."""
    created: float = field(default_factory=lambda: psutil.Process().create_time())
    """When it was started, by the machine's clock."""
    launcher: str = field(default_factory=launcher_identity)
    machine: int = field(default_factory=machine_index)

    def first_heartbeat(self) -> Heartbeat:
        """Return the heartbeat that stands for this rank until it sends one."""
        return Heartbeat(self.rank, self.host, self.namespace, self.pid, self.started)

    def seconds_apart(self, other: Participant) -> float:
        """Return the seconds between the starts of two ranks; 0 for one launcher, infinite for two on one machine."""
        if (self.namespace, self.machine) == (other.namespace, other.machine) and self.launcher and other.launcher:
            return 0.0 if self.launcher == other.launcher else float("inf")
        return abs(self.created - other.created)


class Coordinator:
    """`answer` runs in the threads of a Server, everything else in rank 0's main thread or its watchdog."""

    def __init__(self, me: Participant, size: int, say: Callable[[str], None]) -> None:
        self.me, self.size, self.say = me, size, say
        self.members = {0: me}
        self.state, self.details = "waiting", {}
        self._questions: Counter[int] = Counter()  # that were answered, by rank
        self._refused: set[int] = set()  # ranks of this launch, which know that there will be no run
        self._problem: BaseException | None = None
        self._heartbeats: dict[int, Heartbeat] = {}
        self._lock = Lock()

    def answer(self, question: dict[str, Any], address: str = "") -> dict[str, Any]:
        """Answer a rank that asks to take part, or a heartbeat; `address` is that of ours at which it came."""
        with self._lock:
            if "heartbeat" in question:
                return self._exchange(Heartbeat.from_json(question["heartbeat"]))
            question["reached"] = address
            return {"rank0": asdict(self.me.first_heartbeat())} | self._answer_to(Participant(**question))

    # --- who takes part -----------------------------------------------------------------------------------------------

    def _answer_to(self, asker: Participant) -> dict[str, Any]:
        apart = self.me.seconds_apart(asker)
        if asker.problem:
            if self.state in ("met", "ready") or apart > SAME_LAUNCH:
                return {"state": "busy"}
            if self.state == "waiting":
                self._problem = UserError(f"{asker.name} cannot take part: {asker.problem}")
            self._refused.add(asker.rank)
            return {"state": "refused", "text": asker.problem}
        if self.state == "waiting":
            if text := self._refusal(asker, apart):
                return {"state": "refused", "text": text}
            if not asker.stopped:
                self.members[asker.rank] = asker
            elif apart <= SAME_LAUNCH:
                self._problem = StoppedEarly("another process was asked to stop")
            else:  # started by hand, or by an earlier launch: another may come in its place
                self.members.pop(asker.rank, None)
        elif not self._is_ours(asker, apart):
            return {"state": "busy"}
        self._questions[asker.rank] += 1
        return {"state": self.state, **self.details}

    def _refusal(self, asker: Participant, apart: float) -> str:
        """Return why a rank may not take part; empty if it may."""
        if what := difference(self.me.facts, asker.facts):
            text = f"{asker.name} was not started as rank 0 on {self.me.host} was: {what}"
            if apart <= SAME_LAUNCH:
                self._problem = UserError(f"{text}: start all with the same command, files and versions")
                self._refused.add(asker.rank)
            else:
                self.say(f"{text}: refused; still waiting for rank {asker.rank}")
            return text
        if apart == float("inf"):
            return f"{asker.name} is of another launch than {self.me.name}"
        member = self.members.get(asker.rank)
        if member and not member.is_same_process(asker) and self.me.seconds_apart(member) <= apart:
            return f"{member.name} has taken the place of {asker.name}"
        return ""

    def _is_ours(self, asker: Participant, apart: float) -> bool:
        """Return whether a rank has met the others, or comes when its launch has already failed."""
        member = self.members.get(asker.rank)
        if member and member.is_same_process(asker):
            return True
        return self.state in ("failed", "stopped") and apart <= SAME_LAUNCH

    def wait_for_all(self, seconds: float) -> None:
        """Return when all ranks are there; raise UserError after so many seconds, saying what to check."""
        started, said, complete = time.monotonic(), 0.0, float("inf")
        while True:
            with self._lock:
                if self._problem:
                    raise self._problem
                absent = [rank for rank in range(self.size) if rank not in self.members]
                now = time.monotonic()
                complete = float("inf") if absent else min(complete, now)
                if not absent and (self._is_one_launch() or now - complete > SUCCESSOR):
                    self.state = "met"
                    self._heartbeats = {rank: member.first_heartbeat() for rank, member in self.members.items()}
                    return
            waited = now - started
            if absent and waited > seconds:
                raise UserError(f"{_names(absent)} did not come within {waited:.0f} s: {_advice(absent[0])}")
            if absent and waited > said + seconds / REMARKS:
                hint = "" if said else ": what ssh or its launcher says of it is above"
                self.say(f"waiting for {_names(absent)}, {waited:.0f} s{hint}")
                said = waited
            time.sleep(POLL)

    def _is_one_launch(self) -> bool:
        return all(self.me.seconds_apart(member) <= SAME_LAUNCH for member in self.members.values())

    def publish(self, outcome: str, **details: Any) -> None:
        """Tell the others that the run is "ready", or will not be: "failed", "stopped"."""
        with self._lock:
            self.state, self.details = outcome, details

    def wait_until_read(self, seconds: float, absent_seconds: float | None = None) -> None:
        """Wait until every other rank has asked again, is refused, has ended or is gone.

        The server goes with this process. Ranks that never asked are waited for `absent_seconds`, if that is given.
        """
        started, before = time.monotonic(), self._questions.copy()
        absent_seconds = seconds if absent_seconds is None else absent_seconds
        limits = {rank: seconds if rank in self.members else absent_seconds for rank in range(1, self.size)}
        waiting = set(limits)
        while waiting:
            passed = time.monotonic() - started
            waiting = {
                rank
                for rank in waiting
                if passed < limits[rank] and self._questions[rank] == before[rank] and not self._has_left(rank)
            }
            time.sleep(POLL / 4)

    def _has_left(self, rank: int) -> bool:
        if rank in self._refused:
            return True
        member, heartbeat = self.members.get(rank), self._heartbeats.get(rank)
        state = process_state(member) if member else None
        return bool(state and state.gone) or bool(heartbeat and heartbeat.ended)

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def _exchange(self, heartbeat: Heartbeat) -> dict[str, Any]:
        """Return what the other ranks said last; "busy" to one of another run."""
        known = self._heartbeats.get(heartbeat.rank)
        if known is None or not known.is_same_process(heartbeat):
            return {"state": "busy"}
        self._questions[heartbeat.rank] += 1
        if known.beat < heartbeat.beat:  # one that was held up comes after a later one
            self._heartbeats[heartbeat.rank] = heartbeat
        return {"heartbeats": [asdict(beat) for beat in self._heartbeats.values() if beat.rank != heartbeat.rank]}


# --- ranks that do not come -------------------------------------------------------------------------------------------


def _names(ranks: Sequence[int]) -> str:
    """Return ranks with the machines that the hostfile has for them."""
    names = [f"rank {rank}{f' ({host})' if (host := _host_of(rank)) else ''}" for rank in ranks[:NAMED]]
    return ", ".join(names) + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")


def _advice(rank: int) -> str:
    host, address, port = _host_of(rank) or "its machine", os.environ["MASTER_ADDR"], rendezvous_port()
    return (
        f"check that `ssh {host} hostname` asks nothing, that {os.getcwd()}, {sys.executable} and the data are there "
        f"too, and that {host} reaches {address}:{port} (firewall, deepspeed --master_addr); "
        "BUFUDU_WATCHDOG=meet=900 waits longer"
    )


def _host_of(rank: int) -> str:
    hosts = hosts_of_ranks()
    return hosts[rank] if rank < len(hosts) else ""

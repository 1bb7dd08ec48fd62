"""What the ranks say of themselves, and the judgement of one rank on the others: who has died, hangs or is stuck.

No threads and no sockets here: `FailureDetector.look` is given what was read and how much time has passed.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import psutil

FRESH = 3.0  # beats; a rank or a store that was heard of within so many is there
BUSY_SHARE = 0.1  # of a core; a process that uses more is at work, though its other threads may not get to speak
BUSY_FACTOR = 6.0  # so many times longer such a process is waited for


@dataclass(frozen=True)
class Timing:
    """Seconds: between heartbeats, between looks, and until a rank counts as hung or stuck.

    `first` holds for anything that is done for the first time; `linger` is what the others get to read a verdict.
    """

    beat: float = 1.0
    look: float = 0.5
    hung: float = 40.0
    stuck: float = 40.0
    first: float = 1800.0
    linger: float = 2.0

    @classmethod
    def from_environment(cls) -> Timing:
        """BUFUDU_WATCHDOG, such as `hung=120 stuck=300`; what it leaves out stays as it is."""
        words = (word.partition("=") for word in os.environ.get("BUFUDU_WATCHDOG", "").split())
        names = {field.name for field in fields(cls)}
        given = {}
        for name, _, value in words:
            with suppress(ValueError):
                given |= {name: float(value)} if name in names else {}
        return cls(**given)


@cache
def place() -> str:
    """Where a process number means something: this machine since its start, and this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


@dataclass(frozen=True)
class Heartbeat:
    """What a rank says of itself; `patience` is for how many seconds it may go without a tick.

    `asked`: why it was asked to stop. `left` is empty until it ends: `finished`, `stopped` (in set-up) or `failed`;
    `said`: the user knows why.
    """

    rank: int
    host: str
    place: str
    pid: int
    started: float
    beat: int = 0
    ticks: int = 0
    doing: str = "starting"
    patience: float = 0.0
    where: str = ""
    waiting: bool = False
    paused: bool = False
    asked: str = ""
    left: str = ""
    status: int = 0
    why: str = ""
    said: bool = False

    @classmethod
    def of_this_process(cls, rank: int) -> Heartbeat:
        """The part that does not change."""
        return cls(rank, socket.gethostname(), place(), os.getpid(), _start_of(os.getpid()))

    def encode(self) -> str:
        """As it goes through the store."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def decode(cls, text: bytes) -> Heartbeat:
        """What `encode` made."""
        return cls(**json.loads(text))

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def _start_of(pid: int) -> float:
    """When a process was started, on a clock that nobody sets: with its number this is its identity."""
    with suppress(OSError, IndexError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(stat.rpartition(")")[2].split()[19])
    return psutil.Process(pid).create_time()


@dataclass(frozen=True)
class ProcessState:
    """Of a process of this machine; `cpu` in seconds."""

    gone: bool = False
    stopped: bool = False
    cpu: float = 0.0


def find_process(report: Heartbeat) -> psutil.Process | None:
    """The process of a report from this place; None if it is gone and its number perhaps another's."""
    with suppress(psutil.Error):
        if abs(_start_of(report.pid) - report.started) < 1:
            return psutil.Process(report.pid)
    return None


def process_state(report: Heartbeat) -> ProcessState | None:
    """None for a process of another place, of which nothing can be known from here."""
    if report.place != place():
        return None
    process = find_process(report)
    if process is None:
        return ProcessState(gone=True)
    try:
        status, times = process.status(), process.cpu_times()
    except psutil.NoSuchProcess:
        return ProcessState(gone=True)
    except psutil.Error:
        return ProcessState()
    return ProcessState(
        status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD), status == psutil.STATUS_STOPPED, times.user + times.system
    )


@dataclass(frozen=True)
class Verdict:
    """Why this process must end: `ranks` are to blame; `said`: the user has been told already.

    `kind` is one of died, hung, stuck, failed, stopped (in order, while nothing was trained yet).
    """

    kind: str
    ranks: tuple[int, ...]
    text: str
    status: int = 1
    said: bool = False


@dataclass
class _Memory:
    """Of one peer: `silence` in seconds without a new beat, `cpu` at the latest one, `gone_at` in exchanges."""

    report: Heartbeat
    silence: float = 0.0
    cpu: float = 0.0
    gone_at: int | None = None


class FailureDetector:
    """Of rank `rank`, on all others.

    Time is counted only while this process runs and can hear: a machine put to sleep, or a store that does not answer
    for a while, makes nobody else look dead.
    """

    def __init__(
        self, rank: int, size: int, timing: Timing, state_of: Callable[[Heartbeat], ProcessState | None] = process_state
    ) -> None:
        self.rank, self.size, self.timing, self.state_of = rank, size, timing, state_of
        self.impatient = False  # a collective has failed already, so a peer that is silent is the likely cause
        self._peers: dict[int, _Memory] = {}
        self._exchanges, self._deaf, self._absent, self._still = 0, 0.0, 0.0, 0.0
        self._broken = False
        self._ticks: dict[int, int] = {}

    def look(self, passed: float, reports: Mapping[int, Heartbeat], exchanges: int, broken: bool) -> Verdict | None:
        """FailureDetector by what was read in the last of `exchanges`, `passed` seconds after the look before.

        `reports` has this rank's own too; `broken`: the connection to the store is lost.
        """
        heard, self._broken = exchanges != self._exchanges, broken
        self._exchanges, self._deaf = exchanges, 0.0 if heard else self._deaf + passed
        hearing = self._deaf <= FRESH * self.timing.beat and not broken
        for rank, report in reports.items():
            if rank != self.rank:
                self._remember(report, passed if hearing else 0.0)
        self._absent = self._absent + passed if len(self._peers) < self.size - 1 else 0.0
        return (
            self._left()
            or self._died()
            or self._hung()
            or self._unreachable()
            or self._missing()
            or self._stuck(reports, passed if hearing else 0.0)
        )

    def _remember(self, report: Heartbeat, passed: float) -> None:
        memory = self._peers.get(report.rank)
        if memory is None or report.beat != memory.report.beat:
            state = self.state_of(report)
            self._peers[report.rank] = _Memory(report, cpu=state.cpu if state else 0.0)
        else:
            memory.silence += passed

    def _present(self) -> list[_Memory]:
        return [memory for _, memory in sorted(self._peers.items()) if not memory.report.left]

    def _left(self) -> Verdict | None:
        for rank, memory in sorted(self._peers.items()):
            report = memory.report
            if report.left == "failed":
                return Verdict("failed", (rank,), f"{report.name} has failed: {report.why}", report.status, report.said)
            if report.left == "stopped":
                return Verdict("stopped", (rank,), report.why, 0, True)
        return None

    def _died(self) -> Verdict | None:
        """Those whose process is gone, and who did not say in an exchange begun after that that they leave."""
        dead = []
        for memory in self._present():
            state = self.state_of(memory.report)
            if state is None or not state.gone:
                memory.gone_at = None
                continue
            if memory.gone_at is None:
                memory.gone_at = self._exchanges
            if self._broken or self._exchanges >= memory.gone_at + 2 or self._deaf > FRESH * self.timing.beat:
                dead.append(memory.report)
        if not dead or self._host_has_left():
            return None
        return Verdict(
            "died",
            tuple(report.rank for report in dead),
            f"{_names(dead)} {'has' if len(dead) == 1 else 'have'} died while {dead[0].doing}, killed "
            f"perhaps for memory (dmesg tells): {_logs(dead)}",
        )

    @property
    def in_doubt(self) -> bool:
        """Whether a process is gone, and it takes another exchange to know whether it had said goodbye."""
        return any(memory.gone_at is not None for memory in self._present())

    def _hung(self) -> Verdict | None:
        silent = [memory for memory in self._present() if memory.silence >= self._patience(memory)]
        if not silent:
            return None
        stopped = [memory for memory in silent if (state := self.state_of(memory.report)) and state.stopped]
        how = "its process is stopped" if stopped else "its process does not run any more, or its machine is gone"
        first = [memory.report for memory in silent]
        return Verdict(
            "hung",
            tuple(report.rank for report in first),
            f"{_names(first)} gave no sign of life for {silent[0].silence:.0f} s while {first[0].doing} "
            f"({how}): {_logs(first)}",
        )

    def _patience(self, memory: _Memory) -> float:
        state = self.state_of(memory.report)
        if state is None:
            return self.timing.hung / 6 if self.impatient else self.timing.hung
        at_work = not state.stopped and state.cpu - memory.cpu > BUSY_SHARE * memory.silence
        return self.timing.hung * (BUSY_FACTOR if at_work else 1)

    def _host_has_left(self) -> bool:
        return 0 in self._peers and self._peers[0].report.left == "finished"

    def _unreachable(self) -> Verdict | None:
        """Rank 0 has the store; without it nothing is heard of anybody."""
        if self.rank == 0 or self._host_has_left():
            return None
        if self._deaf < (FRESH * self.timing.beat + self.timing.linger if self._broken else self.timing.hung):
            return None
        host = self._peers[0].report if 0 in self._peers else None
        state = self.state_of(host) if host else None
        name = host.name if host else "rank 0"
        if self._broken:
            return Verdict(
                "died",
                (0,),
                f"the connection to {name} is lost: it has died, or its machine is gone, or the network between",
            )
        how = "; its process is stopped" if state and state.stopped else ""
        return Verdict(
            "hung",
            (0,),
            f"{name} gave no answer for {self._deaf:.0f} s{how}: logs/rank0.log of the run has its last words",
        )

    def _missing(self) -> Verdict | None:
        if self._absent < self.timing.first:
            return None
        missing = sorted(set(range(self.size)) - set(self._peers) - {self.rank})
        return Verdict(
            "died",
            tuple(missing),
            f"rank {', '.join(map(str, missing))} has not appeared within "
            f"{self._absent:.0f} s: was it started, and can it reach rank 0's port?",
        )

    def _stuck(self, reports: Mapping[int, Heartbeat], passed: float) -> Verdict | None:
        """All are alive, and none gets on."""
        there = [report for report in reports.values() if not report.left]
        ticks = {report.rank: report.ticks for report in there}
        alive = all(memory.silence <= FRESH * self.timing.beat for memory in self._present())
        paused = any(report.paused for report in there)
        if ticks != self._ticks or len(there) < self.size or not all(ticks.values()):
            self._ticks, self._still = ticks, 0.0
        elif alive and not paused:
            self._still += passed
        if self._still == 0 or self._still < max(report.patience for report in there):
            return None
        blamed = _suspects(there)
        places = "; ".join(
            f"{report.name} while {report.doing}{report.where and f', in {report.where}'}" for report in blamed
        )
        return Verdict(
            "stuck",
            tuple(report.rank for report in blamed),
            f"nothing has moved for {self._still:.0f} s, stuck is {places}: {_logs(blamed)}",
        )


def _suspects(reports: list[Heartbeat]) -> list[Heartbeat]:
    """Those that do not wait for the others, or else those that have come least far."""
    if free := [report for report in reports if not report.waiting]:
        reports = free
    least = min(report.ticks for report in reports)
    return [report for report in sorted(reports, key=lambda report: report.rank) if report.ticks == least]


def _names(reports: list[Heartbeat]) -> str:
    return " and ".join(report.name for report in reports)


def _logs(reports: list[Heartbeat]) -> str:
    files = ", ".join(f"logs/rank{report.rank}.log" for report in reports)
    return f"{files} of the run has the last words, and the same command continues from the last checkpoint"

"""What a rank tells the others of itself, and what those on its machine can see of its process."""

from __future__ import annotations

import linecache
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch

SLOW_FACTOR = 5.0  # an activity that takes so many times longer than the longest so far is not slow but stuck
_READS_A_NUMBER = re.compile(r"\.(item|tolist|cpu|synchronize)\(")
_ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")  # of CPU time in a second

R = TypeVar("R", bound="RankProcess")


@dataclass(frozen=True)
class Timeouts:
    """Seconds between heartbeats, and until a rank counts as hung or stuck.

    `first` is the timeout of anything done for the first time; `linger` is how long a failure stays readable; `meet` is
    how long the ranks wait for one that does not come.
    """

    beat: float = 0.5
    hung: float = 40.0
    stuck: float = 40.0
    first: float = 1800.0
    linger: float = 2.0
    meet: float = 300.0

    @classmethod
    def from_environment(cls) -> Timeouts:
        """Read BUFUDU_WATCHDOG, such as `hung=120 stuck=300`; what it leaves out keeps its default."""
        names = {field.name for field in fields(cls)}
        given = {}
        for name, _, value in (word.partition("=") for word in os.environ.get("BUFUDU_WATCHDOG", "").split()):
            with suppress(ValueError):
                given |= {name: float(value)} if name in names else {}
        return cls(**given)


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank, as other ranks know it."""

    rank: int
    host: str
    namespace: str
    pid: int
    started: int

    @classmethod
    def of_this_process(cls: type[R], rank: int, **more: Any) -> R:
        """Return what this process says of itself as this rank."""
        pid = os.getpid()
        return cls(rank, socket.gethostname(), pid_namespace(), pid, _start_time(_stat(pid)), **more)

    def is_same_process(self, other: RankProcess) -> bool:
        """Return whether both are of one process."""
        return (self.namespace, self.pid, self.started) == (other.namespace, other.pid, other.started)

    @property
    def name(self) -> str:
        """Return how messages call the rank."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Failure:
    """Why all processes must end.

    `kind` is "died", "hung", "stuck", "failed", or "stopped" (no fault: asked to stop before anything was trained).
    `ranks` are the ones to blame; `announced` says that the user has read why.
    """

    kind: str
    ranks: Sequence[int]
    message: str
    exit_status: int = 1
    announced: bool = False


@dataclass(frozen=True)
class Heartbeat(RankProcess):
    """The state of a rank, sent twice a second."""

    beat: int = 0
    ticks: int = 0
    """Pieces of work that the main thread has begun."""
    activity: str = "starting"
    timeout: float = 0.0
    """Seconds that the main thread may go without a tick."""
    location: str = ""
    collectives: int = 0
    """Those that have finished: a sign of life of every rank, also where heartbeats do not get through."""
    in_collective: bool = False
    collective_failed: bool = False
    """Whether one has failed here, most likely for a rank that is silent."""
    at_terminal: bool = False
    stop_reason: str = ""
    """Why it was asked to stop."""
    ended: bool = False
    """Whether it leaves the run, in order or by a failure of its own."""
    failure: Failure | None = None
    """What it has found or met that ends the run."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Heartbeat:
        """Return a heartbeat from what another process has sent."""
        failure = Failure(**fields["failure"]) if fields["failure"] else None
        return cls(**{**fields, "failure": failure})


# --- the processes of other ranks -------------------------------------------------------------------------------------


@cache
def pid_namespace() -> str:
    """Return an identity of where process numbers are valid: this machine since its boot, and this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _stat(pid: int) -> list[str]:
    """Return what /proc/PID/stat has after the name, the third field on; OSError if there is no such process."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _start_time(stat: list[str]) -> int:
    """Return when a process was started, by a clock that nobody sets: with the number this identifies the process."""
    return int(stat[19])


@dataclass(frozen=True)
class ProcessState:
    """The state of a process of this machine; `cpu` is its CPU time in seconds."""

    gone: bool = False
    stopped: bool = False
    cpu: float = 0.0


def process_state(sender: RankProcess) -> ProcessState | None:
    """Return the state of the process that sent a heartbeat; None if it is on another machine."""
    if sender.namespace != pid_namespace():
        return None
    try:
        stat = _stat(sender.pid)
    except OSError:
        return ProcessState(gone=True)
    if _start_time(stat) != sender.started:
        return ProcessState(gone=True)
    return ProcessState(stat[0] in "ZX", stat[0] == "T", (int(stat[11]) + int(stat[12])) / _TICKS)


def find_process(sender: RankProcess) -> psutil.Process | None:
    """Return the process that sent a heartbeat; None if it is on another machine or has ended."""
    state = process_state(sender)
    with suppress(psutil.Error):
        return psutil.Process(sender.pid) if state and not state.gone else None
    return None


# --- the main thread of this process ----------------------------------------------------------------------------------


class ProgressClock:
    """Counts the pieces of work that the main thread begins, and derives the timeout of each from earlier ones.

    The main thread also counts the `collectives` that have finished.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.ticks, self.collectives, self.activity, self.timeout = 0, 0, "starting", timeouts.first
        self._since = time.monotonic()
        self._first: dict[str, float] = {}  # kept apart: it compiles, allocates, or reads from a cold disk
        self._longest: dict[str, float] = {}

    def tick(self, activity: str, at_least: float = 0.0) -> None:
        """Begin another piece of work: "training", "evaluating", "saving", ...

        `at_least` are the seconds that it may take where they are more than usual (a first step that compiles).
        """
        now = time.monotonic()
        seconds = now - self._since
        if self.activity in self._first:
            self._longest[self.activity] = max(seconds, self._longest.get(self.activity, 0.0))
        else:
            self._first[self.activity] = seconds
        longest = self._longest.get(activity, self._first.get(activity))
        usual = self.timeouts.first if longest is None else max(self.timeouts.stuck, SLOW_FACTOR * longest)
        self._since, self.activity, self.timeout = now, activity, max(usual, at_least)
        self.ticks += 1

    def state(self) -> dict[str, Any]:
        """Return the fields of a Heartbeat that tell what the main thread does, and where it is."""
        frames, frame = [], sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        files = [frame.f_code.co_filename for frame in frames]
        return {
            "ticks": self.ticks,
            "activity": self.activity,
            "timeout": self.timeout,
            "collectives": self.collectives,
            "location": _innermost_own_line(frames),
            "in_collective": any("torch/distributed/distributed_c10d" in file for file in files)
            or _waits_for_gpu(frames),
            # a terminal that is held up (Ctrl-S, a pager) holds up whoever writes to it; that is no fault
            "at_terminal": any(Path(file).name == "console.py" or "/tqdm/" in file for file in files[:8]),
        }


def _waits_for_gpu(frames: list[FrameType]) -> bool:
    """Return whether the innermost line reads a number that a GPU has yet to compute.

    NCCL's collectives return at once, and the next number that is read waits for them.
    """
    if not frames or not torch.cuda.is_initialized():
        return False
    line = linecache.getline(frames[0].f_code.co_filename, frames[0].f_lineno)
    return _READS_A_NUMBER.search(line) is not None


def _innermost_own_line(frames: list[FrameType]) -> str:
    """Return the innermost line of this project's own code, as "file:line (function)"."""
    for frame in frames:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_ROOT) and "site-packages" not in path.parts:
            return f"{path.relative_to(_ROOT)}:{frame.f_lineno} ({frame.f_code.co_name})"
    return ""

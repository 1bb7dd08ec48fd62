"""Requests to stop: a signal, the end of the launcher, or the time limit.

While a run is being set up nothing would be lost, so a signal ends it then and there (`StoppedEarly`). In the loop it
is a request: the loop finishes its step, saves, and ends with status 0 (1 if it could not save). A later signal ends
the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from common.console import Console

SAME_REQUEST_SECONDS = 3.0  # one Ctrl-C arrives twice, from the terminal and from the launcher
PLAUSIBLE_AGE = 600.0  # seconds between the start of a process and its first look at the clock, imports included
NOTHING_LOST = "nothing was trained yet, so nothing is lost"
_IMPORTED = time.monotonic()


class StoppedEarly(BaseException):
    """Asked to stop before anything was trained; says why. An order, like KeyboardInterrupt, and no kind of error."""


def leave_on_signal() -> None:
    """End the program at a signal until a StopRequest listens: imports take seconds, and nothing can be lost yet."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(1, f"{_stopped_by(number)}: {NOTHING_LOST}\n".encode())
    os._exit(0)


def _stopped_by(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


class StopRequest:
    """Whether this rank has a reason to stop; `wanted` turns true once, and the loop agrees on it with other ranks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.reason: str | None = None
        self.deadline: float | None = None  # of time.monotonic()
        # called at a request and when all is saved, perhaps in a signal handler: it must be brief
        self.when_ending: Callable[[], None] = lambda: None
        self._requested_at: float | None = None
        self._phase = "set-up"  # then "loop", then "end"
        self._raised = self._listening = self._waking = False
        self._reserve = 0.0
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM, SIGINT (Ctrl-C, Kaggle's interrupt) and SIGHUP (the terminal is gone) as requests.

        Where the process was started with SIGHUP ignored (nohup) it stays so. After a request, signals are ignored
        while the interpreter shuts down: the launcher signals its processes one after the other.
        """
        numbers = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                ignore = self.reason is not None or handler is _leave
                signal.signal(number, signal.SIG_IGN if ignore else handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._waking:  # our own, from `request`; a long import may have held it up
            self._waking = False
            self._interrupt_set_up()
        elif self._requested_at is not None and time.monotonic() - self._requested_at > SAME_REQUEST_SECONDS:
            self._leave_at_once()
        else:
            self._record(_stopped_by(number))
            self._interrupt_set_up()

    def _leave_at_once(self) -> None:
        if self._phase == "end":
            return  # all is saved; this is the launcher, which comes to this process last
        if self.console.rank == 0:
            self.console.say_unbuffered(
                "stopped at once, by a second signal: the same command continues from the last checkpoint"
            )
        os._exit(1)

    def _record(self, reason: str) -> None:
        if self.reason is None:
            self.reason, self._requested_at = reason, time.monotonic()
            self.when_ending()

    def _interrupt_set_up(self) -> None:
        if self._phase == "set-up" and not self._raised:
            self._raised = True
            raise StoppedEarly(self.reason)

    def request(self, reason: str) -> None:
        """Stop in order for a reason found by another thread; the first reason stays. Never ends the process at once.

        A main thread that waits for something in set-up is woken by a signal, and raises StoppedEarly there.
        """
        self._record(reason)
        if self._listening and self._phase == "set-up" and not self._raised:
            self._waking = True
            with suppress(ValueError, OSError):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def enter_loop(self) -> None:
        """End the set-up: requests wait for the end of a step now. Raise StoppedEarly if there was one before."""
        if self.reason is not None:
            self._raised = True
            raise StoppedEarly(self.reason)
        self._phase = "loop"

    def leave_loop(self) -> None:
        """Note that everything is saved: signals change nothing any more."""
        self._phase = "end"
        self.when_ending()

    @property
    def in_set_up(self) -> bool:
        """Whether nothing has been trained yet."""
        return self._phase == "set-up"

    def set_time_limit(self, seconds: float | None) -> None:
        """Set --time_limit, which counts from the start of this process; None for none."""
        self.deadline = None if seconds is None else _process_start() + seconds

    def reserve(self, seconds: float) -> None:
        """Set how long ending takes at most: the step or evaluation under way and the save after it."""
        self._reserve = max(0.0, seconds)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the time limit; None without one."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since this process was started."""
        return time.monotonic() - _process_start()

    @property
    def wanted(self) -> bool:
        """Whether this rank has a reason to stop; costs next to nothing."""
        left = self.seconds_left
        if left is not None and left <= self._reserve:
            self._record("time limit reached")
        return self.reason is not None


def _process_start() -> float:
    """Return the start of this process on the clock of time.monotonic(), or of the import if the kernel's is wrong."""
    age = time.time() - psutil.Process().create_time()
    since_import = time.monotonic() - _IMPORTED
    if not since_import - 1 <= age <= since_import + PLAUSIBLE_AGE:
        age = since_import
    return time.monotonic() - age

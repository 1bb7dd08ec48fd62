"""A rank that dies, hangs or is stuck ends the run on every rank within a minute; one line says which rank and why.

Every rank has a `Watchdog`, a thread that needs nothing of the main thread, which may wait in a collective for ever.
Twice a second it exchanges heartbeats with the other ranks through rank 0's coordinator and checks what it has heard
with a FailureDetector; a failure goes to the others with the next heartbeat. It also watches DeepSpeed's launcher: when
that is gone, nobody would end these processes, so they stop in order.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import psutil

from common.console import Console
from training.processes.failure_detector import FailureDetector
from training.processes.heartbeat import Failure, Heartbeat, ProgressClock, Timeouts, find_process
from training.processes.launchers import find_launchers, launcher_died_early
from training.processes.stopping import StopRequest

# Seconds
LEAVE_TIMEOUT = 10.0  # in which rank 0, whose process answers, waits for the others to know that it leaves
STOP_REASON_TIMEOUT = 1.5  # a heartbeat and some
SET_UP_TIMEOUT = 10.0  # for a main thread that was asked to leave its set-up
POLL = 0.05


class Watchdog:
    """The watchdog of this process.

    Call `watch_launcher` when the program starts, `watch_ranks` once all have met, `progress.tick` at each piece of
    work, and `leave` at the end.
    """

    def __init__(self, rank: int, size: int, console: Console, stop: StopRequest) -> None:
        self.rank, self.size, self.console, self.stop = rank, size, console, stop
        self.timeouts = Timeouts.from_environment()
        self.failure: Failure | None = None
        self.progress = ProgressClock(self.timeouts)
        self._heartbeat = Heartbeat.of_this_process(rank)
        self._others: dict[int, Heartbeat] = {}  # what rank 0 said last of them; replaced as a whole
        self._answered = self._refused = False  # by rank 0, at the latest exchange
        self._acknowledged = 0  # the latest heartbeat of this rank that rank 0 has answered
        self._detector = FailureDetector(rank, size, self.timeouts)
        self._collective_failed = False
        self._failed, self._left, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._exchange_now = threading.Event()
        self._ask: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._launchers = find_launchers()
        self._launcher_gone = launcher_died_early(self._launchers)
        # tells ranks that wait for the data of this rank 0 that the run has "failed" or was "stopped" (rendezvous.py)
        self.release: Callable[[str], None] = lambda outcome: None

    @property
    def connected(self) -> bool:
        """Whether there are other ranks, and this one has met them."""
        return self._ask is not None

    def watch_launcher(self) -> None:
        """Stop in order when the launcher is gone."""
        if self._launchers or self._launcher_gone or self.size > 1:
            self._thread.start()

    def watch_ranks(
        self,
        ask: Callable[[dict[str, Any]], dict[str, Any]],
        rank0: Heartbeat | None = None,
        wait_until_read: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Watch the other ranks; `ask` exchanges a heartbeat for theirs, and raises an OSError if nobody answers.

        `rank0` stands for that rank until it sends a heartbeat. On rank 0, `wait_until_read` waits so many seconds at
        most until the others have heard of all that it has sent.
        """
        self._others = {0: rank0} if rank0 else {}
        self._wait_until_read, self._ask = wait_until_read, ask

    def wait_for_failure(self, seconds: float) -> Failure | None:
        """Return what made a collective fail: a stop in order, or None if nothing is known after `seconds`.

        If a rank is to blame this does not return: the watchdog says so and ends the process.
        """
        self._collective_failed = True
        if self.connected and self._failed.wait(seconds) and self.failure and self.failure.kind != "stopped":
            threading.Event().wait()
        return self.failure

    def stop_reason(self) -> str:
        """Return why another rank was asked to stop; empty if that is not known within moments."""

        def reasons() -> list[str]:
            return [beat.stop_reason for _, beat in sorted(self._others.items()) if beat.stop_reason]

        if self.connected:
            self._exchange_until(lambda: bool(reasons()), STOP_REASON_TIMEOUT)
        return next(iter(reasons()), "")

    def leave(self, failure: str = "", *, status: int = 0, reason: str = "", announced: bool = False) -> None:
        """Tell the others that this rank ends, in order or by a `failure`: "stopped", "failed". It checks nobody now.

        Rank 0 stays until the others have read it: nobody answers after it.
        """
        if failure:
            message = reason if failure == "stopped" else f"{self._heartbeat.name} has failed: {reason}"
            self.failure = self.failure or Failure(failure, [self.rank], message, status, announced)
        self._left.set()
        if failure:
            self.release(failure)
        if self.connected:
            sent = self._heartbeat.beat
            self._exchange_until(lambda: self._acknowledged > sent + 1, LEAVE_TIMEOUT / 2)
            self._wait_until_read(LEAVE_TIMEOUT)
        self._closed.set()
        self._exchange_now.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_TIMEOUT / 2)

    def _exchange_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Exchange heartbeats without a pause until `condition` holds, rank 0 is lost, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not condition() and not self._refused and time.monotonic() < deadline:
            self._exchange_now.set()
            time.sleep(min(POLL, self.timeouts.beat))

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        before = time.monotonic()
        most = self.timeouts.hung / 4  # a process that was stopped itself must not call others silent
        while not self._closed.is_set():
            self._exchange_now.wait(self.timeouts.beat)
            self._exchange_now.clear()
            if self._launcher_gone or not all(_is_alive(process) for process in self._launchers):
                self._launchers, self._launcher_gone = [], False
                self.stop.request("the launcher is gone")
            if self.connected:
                self._exchange()
                now = time.monotonic()
                passed, before = min(now - before, most), now
                if not self._left.is_set():
                    self._check_ranks(passed)

    def _exchange(self) -> None:
        """Send how this rank is, then read of the others: what is read was there after this rank had sent."""
        assert self._ask is not None
        self._heartbeat = replace(
            self._heartbeat,
            beat=self._heartbeat.beat + 1,
            stop_reason=self.stop.reason or "",
            ended=self._left.is_set(),
            failure=self.failure,
            collective_failed=self._collective_failed,
            **self.progress.state(),
        )
        self._answered = False
        try:
            heard = self._ask({"heartbeat": asdict(self._heartbeat)})["heartbeats"]
        except (ConnectionError, ValueError, KeyError) as error:  # rank 0's process has gone, or is another run's
            if not self._refused and not self._left.is_set():
                print(f"watchdog: rank 0 does not answer: {error}", file=sys.stderr, flush=True)
            self._refused = True
        except OSError:  # nothing comes back, as while a link is cut
            pass
        else:
            self._others = {beat["rank"]: Heartbeat.from_json(beat) for beat in heard}
            self._answered, self._refused, self._acknowledged = True, False, self._heartbeat.beat

    def _check_ranks(self, passed: float) -> None:
        heartbeats = [*self._others.values(), self._heartbeat]
        failure = self._detector.check(passed, heartbeats, answered=self._answered, refused=self._refused)
        if failure:
            self._end_by(failure)

    # --- a failure ----------------------------------------------------------------------------------------------------

    def _end_by(self, failure: Failure) -> None:
        """Tell the user and the other ranks of a failure, and end this process."""
        self.failure = failure
        self._failed.set()
        self._tell(failure)
        if failure.kind == "stopped":
            self.stop.request("another process was asked to stop")
        timeouts = {"stopped": SET_UP_TIMEOUT, "failed": self.timeouts.linger}
        if failure.kind in timeouts and self._left.wait(timeouts[failure.kind]):
            return  # the main thread has met the same fault, or the end of the others, by itself
        if failure.kind != "stopped":
            self._log_stacks(failure)
            if not failure.announced and self.rank == min(set(range(self.size)) - set(failure.ranks), default=0):
                self._announce(f"train.py: {failure.message}")
            if self.stop.in_set_up:
                self.stop.request(failure.message)  # so that half-prepared files are removed
            self._tell(failure, self.timeouts.linger)
        self._exit_process(failure)

    def _tell(self, failure: Failure, seconds: float = 0.0) -> None:
        """Send a failure, again and again for so many seconds; where rank 0 is to blame, everybody finds it alone."""
        deadline = time.monotonic() + seconds
        while True:
            if 0 not in failure.ranks:
                self._exchange()
            if time.monotonic() >= deadline:
                return
            time.sleep(self.timeouts.beat)

    def _log_stacks(self, failure: Failure) -> None:
        if self.console.log_file is not None:
            with suppress(OSError, ValueError):
                print(f"watchdog: {failure.message}; the threads of this process are at:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=2)

    def _announce(self, text: str) -> None:
        """Write to the terminal in a thread of its own: a terminal that is held up must not hold up the end."""
        thread = threading.Thread(target=self.console.say_unbuffered, args=(text,), daemon=True)
        thread.start()
        thread.join(1.0)

    def _exit_process(self, failure: Failure) -> None:
        """End without the interpreter's own shutdown, which waits for threads and for the other ranks."""
        if failure.kind in ("hung", "stuck"):
            self._kill_blamed(failure)
        with suppress(psutil.Error):
            _kill(psutil.Process().children(recursive=True))
        os._exit(failure.exit_status)

    def _kill_blamed(self, failure: Failure) -> None:
        """Kill the processes to blame on this machine; one that is stuck has a watchdog, which gets its turn first."""
        beats = [self._others[rank] for rank in failure.ranks if rank in self._others]
        processes = [process for beat in beats if (process := find_process(beat))]
        with suppress(psutil.Error):
            timeout = 2 * self.timeouts.linger if failure.kind == "stuck" else 0
            _kill(psutil.wait_procs(processes, timeout=timeout)[1])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False

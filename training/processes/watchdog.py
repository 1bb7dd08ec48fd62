"""A rank that dies, hangs or is stuck ends the run on every rank within a minute; one line says which rank and why.

Every rank has a `Watchdog` with two threads. One exchanges heartbeats with the other ranks through rank 0's
coordinator. The other checks what was heard with a FailureDetector, and watches DeepSpeed's launcher: when that is
gone, nobody would end these processes, so they stop in order. Neither thread needs the main thread, which may wait in
a collective for ever, nor the other one, for rank 0 may not answer either.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil

from common.console import Console
from training.processes.failure_detector import Failure, FailureDetector
from training.processes.heartbeat import (
    Heartbeat,
    ProgressClock,
    Timeouts,
    find_process,
    main_thread_state,
    process_state,
)
from training.processes.launchers import find_launchers, launcher_died_early
from training.processes.stopping import StopRequest

# Seconds
LEAVE_TIMEOUT = 10.0  # in which rank 0, whose process answers, waits for the others to know that it leaves
STOP_REASON_TIMEOUT = 1.5  # a heartbeat and some
SET_UP_TIMEOUT = 10.0  # for a main thread that was asked to leave its set-up
POLL = 0.05


@dataclass(frozen=True)
class _Inbox:
    """What the coordinator said last; replaced as a whole, so that no lock is needed."""

    exchanges: int = 0
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    failure: dict[str, Any] | None = None  # the first that any rank has found


class Watchdog:
    """The watchdog of this process.

    Call `watch_launcher` when the program starts, `watch_ranks` once all have met, `tick` at each piece of work, and
    `leave` at the end.
    """

    def __init__(self, rank: int, size: int, console: Console, stop: StopRequest) -> None:
        self.rank, self.size, self.console, self.stop = rank, size, console, stop
        self.timeouts = Timeouts.from_environment()
        self.failure: Failure | None = None
        self._progress = ProgressClock(self.timeouts)
        self._heartbeat = Heartbeat.of_this_process(rank)
        self._detector = FailureDetector(rank, size, self.timeouts)
        self._exit: dict[str, Any] = {}
        self._inbox, self._disconnected = _Inbox(), False
        self._failed, self._left, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._exchange_now = threading.Event()
        self._ask: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self._collectives = 0
        self._threads: dict[str, threading.Thread] = {}
        self._launchers = find_launchers()
        self._launcher_gone = launcher_died_early(self._launchers)

    @property
    def connected(self) -> bool:
        """Whether there are other ranks, and this one has met them."""
        return self._ask is not None

    def watch_launcher(self) -> None:
        """Stop in order when the launcher is gone."""
        if self._launchers or self._launcher_gone or self.size > 1:
            self._start("checks", self._check_forever)

    def watch_ranks(self, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Watch the other ranks; `ask` exchanges a heartbeat for theirs, and raises an OSError if nobody answers."""
        self._ask = ask
        self._start("exchanges", self._exchange_forever)

    def heard_from_all(self) -> None:
        """Note that a collective has finished, so that all ranks were alive; called by the main thread."""
        self._collectives += 1

    def tick(self, activity: str, at_least: float = 0.0) -> None:
        """Begin another piece of work: "training", "evaluating", "saving", ... Called by the main thread.

        `at_least` are the seconds that it may take where they are more than usual (a first step that compiles).
        """
        self._progress.tick(activity, at_least)

    def wait_for_failure(self, seconds: float) -> Failure | None:
        """Return what made a collective fail: a stop in order, or None if nothing is known after `seconds`.

        If a rank is to blame this does not return: the checking thread says so and ends the process.
        """
        self._detector.collective_failed = True
        if self.connected and self._failed.wait(seconds) and self.failure and self.failure.kind != "stopped":
            threading.Event().wait()
        return self.failure

    def stop_reason(self) -> str:
        """Return why another rank was asked to stop; empty if that is not known within moments."""

        def reasons() -> list[str]:
            return [beat.stop_reason for _, beat in sorted(self._inbox.heartbeats.items()) if beat.stop_reason]

        if self.connected:
            self._exchange_until(lambda: bool(reasons()), STOP_REASON_TIMEOUT)
        return next(iter(reasons()), "")

    def leave(self, ended: str, *, status: int = 0, reason: str = "", announced: bool = False) -> None:
        """Tell the others that this rank ends: "finished", "stopped" (in set-up) or "failed". It checks nobody now.

        Rank 0 stays until the others have read it: nobody answers after it.
        """
        self._exit = {"ended": ended, "exit_status": status, "exit_reason": reason, "announced": announced}
        self._left.set()
        if self.connected:
            exchanges = self._inbox.exchanges
            self._exchange_until(lambda: self._inbox.exchanges >= exchanges + 2, LEAVE_TIMEOUT / 2)
        if self.connected and self.rank == 0:
            before = self._inbox.heartbeats
            self._exchange_until(lambda: self._all_know(before), LEAVE_TIMEOUT)
        self._closed.set()
        self._exchange_now.set()
        for thread in self._threads.values():
            if thread is not threading.current_thread():
                thread.join(LEAVE_TIMEOUT / 2)

    def _all_know(self, before: dict[int, Heartbeat]) -> bool:
        """Return whether every other rank has ended, is gone, or has read all once since `before`."""

        def knows(rank: int, beat: Heartbeat) -> bool:
            state = process_state(beat)
            has_read = rank in before and beat.beat >= before[rank].beat + 2
            return bool(beat.ended) or (state is not None and state.gone) or has_read

        return all(knows(rank, beat) for rank, beat in self._inbox.heartbeats.items())

    def _start(self, name: str, target: Callable[[], None]) -> None:
        self._threads[name] = threading.Thread(target=target, name=f"watchdog {name}", daemon=True)
        self._threads[name].start()

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def _exchange_forever(self) -> None:
        """Exchange heartbeats, and let the detector decide how long they may fail."""
        while not self._closed.is_set():
            try:
                self._exchange()
                self._disconnected = False
            except (ConnectionError, ValueError) as error:  # rank 0's process has gone
                if not self._disconnected and not self._left.is_set():
                    print(f"watchdog: rank 0 does not answer: {error}", file=sys.stderr, flush=True)
                self._disconnected = True
            except OSError:  # nothing comes back, as while a link is cut
                pass
            self._exchange_now.wait(self.timeouts.beat)
            self._exchange_now.clear()

    def _exchange(self) -> None:
        """Send, then read: what is read was there after this rank had sent."""
        assert self._ask is not None
        self._heartbeat, found = self._next_heartbeat(), self.failure and asdict(self.failure)
        heard = self._ask({"heartbeat": asdict(self._heartbeat), "failure": found})
        beats = {beat["rank"]: Heartbeat(**beat) for beat in heard["heartbeats"]}
        self._inbox = _Inbox(self._inbox.exchanges + 1, beats, heard["failure"])

    def _next_heartbeat(self) -> Heartbeat:
        return replace(
            self._heartbeat,
            beat=self._heartbeat.beat + 1,
            ticks=self._progress.ticks,
            activity=self._progress.activity,
            timeout=self._progress.timeout,
            stop_reason=self.stop.reason or "",
            **main_thread_state(),
            **self._exit,
        )

    def _exchange_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Exchange heartbeats without a pause until `condition` holds, rank 0 is lost, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not condition() and not self._disconnected and time.monotonic() < deadline:
            self._exchange_now.set()
            time.sleep(min(POLL, self.timeouts.beat))

    # --- checking -----------------------------------------------------------------------------------------------------

    def _check_forever(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self.timeouts.check):
            now = time.monotonic()
            # a process that was stopped itself must not call others silent
            passed, before = min(now - before, 2 * self.timeouts.check), now
            if self._launcher_gone or not all(_is_alive(process) for process in self._launchers):
                self._launchers, self._launcher_gone = [], False
                self.stop.request("the launcher is gone")
            if self.connected and not self._left.is_set():
                self._check_ranks(passed)

    def _check_ranks(self, passed: float) -> None:
        inbox = self._inbox
        if inbox.failure:
            self._end_by(Failure(**inbox.failure))
            return
        heartbeats = inbox.heartbeats | {self.rank: self._heartbeat}
        if failure := self._detector.check(
            passed, heartbeats, inbox.exchanges, self._disconnected, collectives=self._collectives
        ):
            self._end_by(failure)
        if self._detector.in_doubt:
            self._exchange_now.set()

    def _end_by(self, failure: Failure) -> None:
        """Tell the user and the other ranks of a failure, and end this process."""
        self.failure = failure
        self._failed.set()
        self._exchange_now.set()
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
            time.sleep(self.timeouts.linger)
        self._exit_process(failure)

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
        beats = [self._inbox.heartbeats[rank] for rank in failure.ranks if rank in self._inbox.heartbeats]
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

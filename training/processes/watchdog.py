"""A rank that dies, hangs or is stuck ends the run on every rank within a minute; one line says which rank and why.

Every rank has a `Watchdog` with two threads. One exchanges heartbeats with the other ranks through the store that the
process group was formed with, over a connection of its own. The other checks what was read with a FailureDetector, and
watches DeepSpeed's launcher: when that is gone, nobody would end these processes, so they stop in order. Neither thread
needs the main thread, which may wait in a collective for ever, nor the other one, for the store may not answer either.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from common.console import Console
from training.processes.failure_detector import Failure, FailureDetector
from training.processes.heartbeat import (
    Heartbeat,
    ProgressClock,
    find_process,
    main_thread_state,
    process_state,
)
from training.processes.launchers import find_launchers, launcher_died_early
from training.processes.network import answer
from training.processes.stopping import StopRequest
from training.processes.timeouts import Timeouts

# Seconds
LEAVE_TIMEOUT = 10.0  # in which rank 0, whose process has the store, waits for the others to know that it leaves
CONNECT_TIMEOUT = timedelta(seconds=3)
STALLED = 6.0  # for an exchange; a connection that was cut may take minutes to notice that it is whole again
STOP_REASON_TIMEOUT = 1.5  # a heartbeat and some
SET_UP_TIMEOUT = 10.0  # for a main thread that was asked to leave its set-up
POLL = 0.05

_FAILURE_KEY = "watch/failure"


@dataclass(frozen=True)
class _Inbox:
    """What the store said last; replaced as a whole, so that no lock is needed."""

    exchanges: int = 0
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    failure: dict[str, Any] | None = None


class Watchdog:
    """The watchdog of this process.

    Call `watch_launcher` when the program starts, `watch_ranks` once there is a store, `tick` at each piece of work,
    and `leave` at the end.
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
        self._claim: str | None = None  # a failure that this rank wants to announce
        self._store: Store | None = None
        self._address = "", 0
        self._exchanger = 0  # number of the thread that exchanges heartbeats
        self._exchange_began: float | None = None
        self._collectives = 0
        self._threads: dict[str, threading.Thread] = {}
        self._launchers = find_launchers()
        self._launcher_gone = launcher_died_early(self._launchers)

    @property
    def connected(self) -> bool:
        """Whether there are other ranks, and a store that they have in common."""
        return self.size > 1 and self._store is not None

    def watch_launcher(self) -> None:
        """Stop in order when the launcher is gone."""
        if self._launchers or self._launcher_gone or self.size > 1:
            self._start("checks", self._check_forever)

    def watch_ranks(self, store: Store, address: str, port: int) -> None:
        """Watch the other ranks through the store at `address`; `store` is kept, for rank 0's has the server in it."""
        self._address = address, port
        if self.size > 1:
            self._start_exchanging()
        self._store = store

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

        Rank 0 stays until the others have read it: the store goes with its process.
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

    def _start_exchanging(self) -> None:
        """Exchange heartbeats over a new connection; a thread that waits for a lost one is left alone."""
        self._exchanger += 1
        number, self._exchange_began = self._exchanger, time.monotonic()
        self._start("exchanges", lambda: self._exchange_forever(number))

    def _exchange_forever(self, number: int) -> None:
        """Exchange heartbeats; open a lost connection again, and let the detector decide how long that may take."""
        store: TCPStore | None = None
        while not self._closed.is_set() and number == self._exchanger:
            self._exchange_began = time.monotonic()
            try:
                store = store or self._connect()
                if store:
                    self._exchange(store)
                lost = False
            except Exception as error:  # of any kind that a lost connection takes
                if not self._disconnected and not self._left.is_set():
                    print(f"watchdog: rank 0's store does not answer: {error}", file=sys.stderr, flush=True)
                store, lost = None, True
            if number == self._exchanger:
                self._disconnected, self._exchange_began = lost, None
            self._exchange_now.wait(self.timeouts.beat)
            self._exchange_now.clear()

    def _connect(self) -> TCPStore | None:
        """Return a connection to the store; None if nothing comes back from its machine, as while a link is cut."""
        address, port = self._address
        if answer(address, port) is None:
            return None
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)

    def _exchange(self, store: Store) -> None:
        """Write, then read: what is read was there after this rank had written."""
        self._heartbeat = self._next_heartbeat()
        keys = {rank: f"watch/{rank}" for rank in range(self.size)}
        store.set(keys.pop(self.rank), self._heartbeat.encode())
        beats = {rank: Heartbeat.decode(store.get(key)) for rank, key in keys.items() if store.check([key])}
        if self._claim is not None:
            store.compare_set(_FAILURE_KEY, "", self._claim)
        failure = json.loads(store.get(_FAILURE_KEY)) if store.check([_FAILURE_KEY]) else None
        self._inbox = _Inbox(self._inbox.exchanges + 1, beats, failure)

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
        """Exchange heartbeats without a pause until `condition` holds, the store is lost, or `seconds` have passed."""
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
            if self._exchange_began is not None and now - self._exchange_began > STALLED:
                self._start_exchanging()
            if self.connected and not self._left.is_set():
                self._check_ranks(passed)

    def _check_ranks(self, passed: float) -> None:
        inbox = self._inbox
        if (found := inbox.failure) and found["rank"] != self.rank:
            self._end_by(Failure(found["kind"], tuple(found["ranks"]), found["message"], announced=True))
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
        if failure.kind == "stopped":
            self.stop.request("another process was asked to stop")
        timeouts = {"stopped": SET_UP_TIMEOUT, "failed": self.timeouts.linger}
        if failure.kind in timeouts and self._left.wait(timeouts[failure.kind]):
            return  # the main thread has met the same fault, or the end of the others, by itself
        if failure.kind != "stopped":
            self._log_stacks(failure)
            if not failure.announced and self._may_announce(failure):
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

    def _may_announce(self, failure: Failure) -> bool:
        """Return whether it is this rank that tells the user: the one whose claim the store took first.

        The lowest rank gets a head start. If the store does not answer, it is the lowest of those not to blame.
        """
        others = [rank for rank in range(self.size) if rank not in failure.ranks]
        position = others.index(self.rank) if self.rank in others else len(others)
        time.sleep(0.2 * min(position, 5))
        if not self._disconnected:
            claim = {"rank": self.rank, "kind": failure.kind, "ranks": failure.ranks, "message": failure.message}
            self._claim = json.dumps(claim)
        self._exchange_until(lambda: self._inbox.failure is not None, 2.0)
        accepted = self._inbox.failure
        return accepted["rank"] == self.rank if accepted else position == 0

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

"""A rank that dies, hangs or is stuck ends the run on every rank within a minute, and one line says which and why.

Every rank has a `Watchdog`: one thread tells the others about this rank, and reads what they tell, through the store
that the process group was formed with (over a connection of its own); another judges (training/processes/failure_detector.py). They need
neither the main thread, which may wait in a collective for ever, nor each other, for the store may not answer either.
They also watch the launcher: when it is gone, nobody would end these processes, so they stop in order.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch.distributed as dist

from common.console import Console
from training.processes.failure_detector import FailureDetector, Heartbeat, Timing, Verdict, find_process, place
from training.processes.stopping import StopRequest

SLOWER = 5.0  # times longer than the longest so far, something is not slow but stuck
LEAVE_WAIT = 10.0  # seconds in which the last to leave, who has the store, waits for the others to know
FIRST_CONNECTION, RECONNECTION = 60.0, 3.0  # seconds
ASKED_WAIT = 1.5  # seconds; a heartbeat and some
CLEAN_UP = 10.0  # seconds for a main thread that was asked to leave its set-up
ROOT = Path(__file__).resolve().parents[2]
LAUNCHED = "CROSS_RANK"  # set by the first of these for its processes, and by nothing else
LAUNCHERS = ("deepspeed.launcher.launch", "deepspeed.launcher.runner")


class ProgressClock:
    """How the main thread gets on: what it does, since when, and how long that took before."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.count, self.doing, self.patience = 0, "starting", timing.first
        self._since = time.monotonic()
        self._first: dict[str, float] = {}
        self._longest: dict[str, float] = {}

    def tick(self, doing: str, at_least: float) -> None:
        """The main thread begins another piece of `doing`; `at_least`: seconds that it may take."""
        now = time.monotonic()
        self._learn(self.doing, now - self._since)
        self._since, self.doing = now, doing
        self.patience = max(self._usual(doing), at_least)
        self.count += 1

    def _learn(self, doing: str, seconds: float) -> None:
        """The first time is kept apart: it compiles, allocates, or reads from a cold disk."""
        if doing not in self._first:
            self._first[doing] = seconds
        else:
            self._longest[doing] = max(seconds, self._longest.get(doing, 0.0))

    def _usual(self, doing: str) -> float:
        longest = self._longest.get(doing, self._first.get(doing))
        return self.timing.first if longest is None else max(self.timing.stuck, SLOWER * longest)


@dataclass
class _Mail:
    """What the store said last; replaced whole, so that no lock is needed."""

    exchanges: int = 0
    reports: dict[int, Heartbeat] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None


class Watchdog:
    """Of this process. `begin` at the start of the program, `meet` once there is a store, `leave` at the end."""

    def __init__(self, rank: int, size: int, console: Console, stop: StopRequest, timing: Timing | None = None) -> None:
        self.rank, self.size, self.console, self.stop = rank, size, console, stop
        self.timing = timing or Timing.from_environment()
        self.verdict: Verdict | None = None
        self._ticks = ProgressClock(self.timing)
        self._report = Heartbeat.of_this_process(rank)
        self._judge = FailureDetector(rank, size, self.timing)
        self._farewell: dict[str, Any] = {}
        self._mail, self._broken = _Mail(), False
        self._found, self._left, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._speak = threading.Event()  # do not wait for the next beat
        self._outgoing: str | None = None  # a verdict to publish
        self._store: Any = None
        self._threads: list[threading.Thread] = []
        self._launchers = list(_launchers())
        self._orphaned = _launcher_died_early(self._launchers)

    @property
    def together(self) -> bool:
        """Whether there are other ranks, and a store that they have in common."""
        return self.size > 1 and self._store is not None

    def begin(self) -> None:
        """Watch the launcher."""
        if self._launchers or self._orphaned or self.size > 1:
            self._start(self._look_forever)

    def meet(self, store: dist.Store, address: str, port: int) -> None:
        """Watch the other ranks through the store at `address`; `store` is kept, for its server lives in rank 0's."""
        self._store = store
        if self.size > 1:
            self._start(lambda: self._exchange_forever(address, port))

    def tick(self, doing: str, at_least: float = 0.0) -> None:
        """For the main thread, at each piece of work: "training", "evaluating", "saving", ...

        `at_least`: seconds that this piece may take, where more than the usual (a first step that compiles).
        """
        self._ticks.tick(doing, at_least)

    def explain(self, seconds: float) -> Verdict | None:
        """For a main thread whose collective has failed: wait for a verdict.

        If a rank is to blame this does not return: the judging thread says so and ends the process. Returned are a
        stop in order, or None if nothing is known of anybody after `seconds`.
        """
        self._judge.impatient = True
        if self.together and self._found.wait(seconds) and self.verdict and self.verdict.kind != "stopped":
            threading.Event().wait()
        return self.verdict

    def asked(self) -> str:
        """Why another rank was asked to stop, as far as that is known within moments; empty if it is not."""
        reasons: list[str] = []
        deadline = time.monotonic() + ASKED_WAIT
        while self.together and not reasons and not self._broken and time.monotonic() < deadline:
            self._speak.set()
            time.sleep(min(0.05, self.timing.beat))
            reasons = [report.asked for _, report in sorted(self._mail.reports.items()) if report.asked]
        return reasons[0] if reasons else ""

    def leave(self, how: str, *, status: int = 0, why: str = "", said: bool = False) -> None:
        """This rank ends: `finished`, `stopped` (asked to, in set-up) or `failed`. From here on it judges nobody.

        Rank 0 stays until the others have read it: the store goes with it.
        """
        self._farewell = {"left": how, "status": status, "why": why, "said": said}
        self._left.set()
        if self.together:
            self._speak.set()
            self._wait_until(lambda mail, before: mail.exchanges >= before.exchanges + 2, LEAVE_WAIT / 2)
            if self.rank == 0:
                self._wait_until(self._all_know, LEAVE_WAIT)
        self._closed.set()
        self._speak.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(LEAVE_WAIT / 2)

    def _wait_until(self, true: Any, seconds: float) -> None:
        before, deadline = self._mail, time.monotonic() + seconds
        while not self._broken and not true(self._mail, before) and time.monotonic() < deadline:
            self._speak.set()
            time.sleep(min(0.05, self.timing.beat))

    def _all_know(self, mail: _Mail, before: _Mail) -> bool:
        """Every other rank has left, is gone, or has read all once since; what it reads next it reads in vain."""
        return all(
            self._knows(report, before.reports.get(rank)) for rank, report in mail.reports.items() if rank != self.rank
        )

    def _knows(self, report: Heartbeat, before: Heartbeat | None) -> bool:
        gone = report.place == place() and find_process(report) is None
        return bool(report.left) or gone or (before is not None and report.beat >= before.beat + 2)

    # --- telling and hearing ------------------------------------------------------------------------------------------

    def _start(self, target: Any) -> None:
        thread = threading.Thread(target=target, name="watchdog", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _exchange_forever(self, address: str, port: int) -> None:
        """Over a connection of its own; a lost one is opened again, and the judge decides how long that may take."""
        store, patience = None, FIRST_CONNECTION
        while not self._closed.is_set():
            try:
                store = store or dist.TCPStore(
                    address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=patience)
                )
                self._exchange(store)
                self._broken = False
            except Exception as error:  # of any kind that a lost connection takes
                if not self._broken and not self._left.is_set():
                    print(f"watchdog: rank 0's store does not answer: {error}", file=sys.stderr, flush=True)
                store, patience, self._broken = None, RECONNECTION, True
            self._speak.wait(self.timing.beat)
            self._speak.clear()

    def _exchange(self, store: dist.Store) -> None:
        """Tell, then read: what is read was there after this rank had told."""
        self._report = self._now()
        store.set(_key(self.rank), self._report.encode())
        others = (rank for rank in range(self.size) if rank != self.rank)
        reports = {rank: Heartbeat.decode(store.get(_key(rank))) for rank in others if store.check([_key(rank)])}
        if self._outgoing is not None:
            store.compare_set("watch/verdict", "", self._outgoing)
        verdict = json.loads(store.get("watch/verdict")) if store.check(["watch/verdict"]) else None
        self._mail = _Mail(self._mail.exchanges + 1, reports, verdict)

    def _now(self) -> Heartbeat:
        frames = _main_thread()
        return replace(
            self._report,
            beat=self._report.beat + 1,
            ticks=self._ticks.count,
            doing=self._ticks.doing,
            patience=self._ticks.patience,
            where=_where(frames),
            waiting=_in_collective(frames),
            paused=_at_the_terminal(frames),
            asked=self.stop.reason or "",
            **self._farewell,
        )

    # --- judging ------------------------------------------------------------------------------------------------------

    def _look_forever(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self.timing.look):
            now = time.monotonic()
            # a process that was stopped itself has no right to call others silent
            passed, before = min(now - before, 2 * self.timing.look), now
            self._watch_launchers()
            if self.together and not self._left.is_set():
                self._look(passed)

    def _watch_launchers(self) -> None:
        if self._orphaned or any(not _lives(process) for process in self._launchers):
            self._launchers, self._orphaned = [], False
            self.stop.ask("the launcher is gone")

    def _look(self, passed: float) -> None:
        mail = self._mail
        if mail.verdict and mail.verdict["rank"] != self.rank:
            kind, ranks, text = (mail.verdict[name] for name in ("kind", "ranks", "text"))
            self._carry_out(Verdict(kind, tuple(ranks), text, said=True))
            return
        reports = mail.reports | {self.rank: self._report}
        if verdict := self._judge.look(passed, reports, mail.exchanges, self._broken):
            self._carry_out(verdict)
        if self._judge.in_doubt:
            self._speak.set()

    def _carry_out(self, verdict: Verdict) -> None:
        """Tell the user and the other ranks, and end this process."""
        self.verdict = verdict
        self._found.set()
        if verdict.kind == "stopped":
            self.stop.ask("another process was asked to stop")
        patience = {"stopped": CLEAN_UP, "failed": self.timing.linger}
        if verdict.kind in patience and self._left.wait(patience[verdict.kind]):
            return  # the main thread has met the same fault, or the end of the others, by itself
        if verdict.kind != "stopped":
            self._report_stacks(verdict)
            if not verdict.said and self._is_to_say(verdict):
                self._say(f"train.py: {verdict.text}")
            if self.stop.in_set_up:
                self.stop.ask(verdict.text)  # so that files half prepared are cleaned away
            time.sleep(self.timing.linger)
        self._end(verdict)

    def _report_stacks(self, verdict: Verdict) -> None:
        if self.console.log_file is not None:
            with suppress(OSError, ValueError):
                print(f"watchdog: {verdict.text}; where the threads of this process are:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=2)

    def _is_to_say(self, verdict: Verdict) -> bool:
        """Whether it is this rank that tells the user: the one whose verdict the store took first.

        The lowest gets a head start; if the store does not answer it is the lowest of those not to blame.
        """
        others = [rank for rank in range(self.size) if rank not in verdict.ranks]
        place_in_line = others.index(self.rank) if self.rank in others else len(others)
        time.sleep(0.2 * min(place_in_line, 5))
        if not self._broken:
            self._outgoing = json.dumps(
                {"rank": self.rank, "kind": verdict.kind, "ranks": verdict.ranks, "text": verdict.text}
            )
            deadline = time.monotonic() + 2.0
            while time.monotonic() < deadline and not self._broken:
                self._speak.set()
                if self._mail.verdict:
                    return self._mail.verdict["rank"] == self.rank
                time.sleep(0.05)
        return place_in_line == 0

    def _say(self, text: str) -> None:
        """In a thread of its own: a terminal that is held up must not hold up the end."""
        thread = threading.Thread(target=self.console.last_words, args=(text,), daemon=True)
        thread.start()
        thread.join(1.0)

    def _end(self, verdict: Verdict) -> None:
        """Without the interpreter's own way out, which waits for threads and for the other ranks' goodbye."""
        if verdict.kind in ("hung", "stuck"):
            self._kill(verdict)
        with suppress(psutil.Error):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        os._exit(verdict.status)

    def _kill(self, verdict: Verdict) -> None:
        """Those to blame on this machine; one that is merely stuck has a watchdog of its own, and its turn first."""
        reports = (self._mail.reports.get(rank) for rank in verdict.ranks)
        blamed = [
            process for report in reports if report and report.place == place() and (process := find_process(report))
        ]
        with suppress(psutil.Error):
            _, alive = psutil.wait_procs(blamed, timeout=2 * self.timing.linger if verdict.kind == "stuck" else 0)
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()


def _key(rank: int) -> str:
    return f"watch/{rank}"


def _launchers() -> Iterator[psutil.Process]:
    """DeepSpeed's launcher, whose child this process is, and the `deepspeed` command above it."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents()[:2]:
            command = process.cmdline()
            if not any(word in LAUNCHERS or Path(word).name == "deepspeed" for word in command[:4]):
                return
            yield process


def _launcher_died_early(found: list[psutil.Process]) -> bool:
    """Whether a part of it was killed while this process imported its libraries; only `deepspeed` sets LAUNCHED."""
    if LAUNCHED not in os.environ:
        return False
    with suppress(psutil.Error):
        return not found or (len(found) == 1 and os.environ.get("CROSS_SIZE") == "1" and found[0].ppid() == 1)
    return True


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _main_thread() -> list[FrameType]:
    """Its frames, the innermost first."""
    frames, frame = [], sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _where(frames: list[FrameType]) -> str:
    """The innermost line of this project's own code."""
    for frame in frames:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} ({frame.f_code.co_name})"
    return ""


def _in_collective(frames: list[FrameType]) -> bool:
    return any("torch/distributed/distributed_c10d" in frame.f_code.co_filename for frame in frames)


def _at_the_terminal(frames: list[FrameType]) -> bool:
    """A terminal that is held up (Ctrl-S, a pager) holds up whoever writes to it; that is no fault."""
    return any(
        Path(frame.f_code.co_filename).name == "console.py" or "/tqdm/" in frame.f_code.co_filename
        for frame in frames[:8]
    )

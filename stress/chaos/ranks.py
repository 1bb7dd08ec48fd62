"""A rank that dies, hangs for ever, or only stands still for a while."""

from __future__ import annotations

import re
import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.session import Session
from stress.chaos.workplace import ENDLESS, Workplace

CATEGORY = "a rank dies, hangs or is slow"
STOP_LIMIT = 60.0
PAUSE = 20.0  # seconds that a rank must be waited for
STEPS = 8  # into a session before anything happens


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """Both ranks killed and hung in turn on one run, one paused; the run must then end as the uninterrupted one."""
    reference, base = work.reference(), work.fresh("ranks")
    for rank in (0, 1):
        _lost(work, journal, base, rank, SIGKILL, f"rank {rank} killed")
        _lost(work, journal, base, rank, SIGSTOP, f"rank {rank} hangs for ever")
    _slow(work, journal, base, reference)
    for role, name in (("launch", "launch.py killed"), ("runner", "the deepspeed command killed")):
        _orphaned(work, journal, role, f"{name}: the ranks must not go on alone")


def _orphaned(work: Workplace, journal: Journal, role: str, name: str) -> None:
    """On a run that would last for many minutes."""
    trial, run_folder = Trial(CATEGORY, name), work.fresh("orphaned")
    with work.session(work.flags(run_folder, pace=ENDLESS), "orphaned") as session:
        trial.facts["log"] = session.log.name
        trial.expect(_reach(session, run_folder), f"ended before: {session.output[-300:]}")
        reached, begun = compare.last_step(run_folder), time.monotonic()
        session.send(SIGKILL, role)
        trial.seconds_to_stop = session.wait_gone(STOP_LIMIT + 5)
        left = [p.role for p in session.sweep()]
        trial.expect(
            trial.seconds_to_stop is not None and trial.seconds_to_stop <= STOP_LIMIT,
            f"after {time.monotonic() - begun:.0f} s there still were {', '.join(left)}",
        )
        trial.expect(not session.port_bound, f"port {session.port} is still bound")
        trial.facts["steps after it"] = compare.last_step(run_folder) - reached
    journal.add(trial)


def _reach(session: Session, base: Path) -> bool:
    return session.wait_until(
        lambda: session.announced is not None and compare.last_step(base) >= session.announced + STEPS
    )


def _lost(work: Workplace, journal: Journal, base: Path, rank: int, number: int, name: str) -> None:
    """All must be gone in time, and a line must say which rank it was."""
    trial = Trial(CATEGORY, name)
    with work.session(work.flags(base), "rank") as session:
        trial.facts["log"] = session.log.name
        trial.expect(_reach(session, base), f"ended before anything was done to it: {session.output[-300:]}")
        session.send(number, f"rank{rank}")
        begun = time.monotonic()
        session.wait_until(lambda: not [p for p in session.processes("ranks") if p.role != f"rank{rank}"], limit=120)
        trial.facts["seconds until the other rank stopped"] = time.monotonic() - begun
        trial.seconds_to_stop = session.wait_gone(max(0.0, 120 - (time.monotonic() - begun)))
        if trial.seconds_to_stop is not None:
            trial.seconds_to_stop = time.monotonic() - begun
        left = [p.role for p in session.sweep()]
        trial.expect(
            trial.seconds_to_stop is not None and trial.seconds_to_stop <= STOP_LIMIT,
            f"stopped after {trial.seconds_to_stop} s, limit {STOP_LIMIT:.0f}; left: {', '.join(left) or '-'}",
        )
        trial.expect(not session.port_bound, f"port {session.port} is still bound")
        told = [line for line in session.said if re.search(rf"\brank {rank}\b", line)]
        trial.expect(told, f"no line on the terminal names rank {rank}")
        trial.facts["said"] = told[-1].strip()[:240] if told else None
    journal.add(trial)


def _slow(work: Workplace, journal: Journal, base: Path, reference: Path) -> None:
    trial = Trial(CATEGORY, f"rank 1 stands still for {PAUSE:.0f} s, then goes on")
    with work.session(work.flags(base), "slow") as session:
        trial.facts["log"] = session.log.name
        trial.expect(session.wait_until(lambda: session.announced is not None), "it did not start")
        time.sleep(0.5)
        paused = session.send(SIGSTOP, "rank1")
        time.sleep(PAUSE)
        session.send(SIGCONT, "rank1")
        status = session.wait_end()
    trial.expect(len(paused) == 1, "the rank was gone before it could be stopped")
    trial.expect(status == 0, f"exit status {status}: {session.output[-300:]}")
    if status == 0:
        trial.problems += compare.differences(base, reference)
    journal.add(trial)

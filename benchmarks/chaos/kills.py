"""SIGKILL at random moments of a run's whole life, and the same command again each time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import SIGKILL

from benchmarks.chaos import compare
from benchmarks.chaos.record import Journal, Trial
from benchmarks.chaos.session import Session
from benchmarks.chaos.workplace import Workplace

CATEGORY = "kills"
TARGETS = (("rank0",), ("rank1",), ("ranks",), ("launch",), ("runner",), ("runner", "launch", "ranks"))
WORDS = {"rank0": "rank 0", "rank1": "rank 1", "ranks": "both ranks", "launch": "launch.py",
         "runner": "the deepspeed command"}
MOMENTS = ("anytime", "save", "setup", "evaluation", "end")
SHARES = (0.36, 0.3, 0.1, 0.12, 0.12)
STOP_LIMIT = 60.0  # seconds in which no process may be left
GIVE_UP = 90.0
LIFE = 16.0  # seconds between the first step and the end of a run that nothing interrupts, about
SETUP = 14.0  # before it
SAVE, EVALUATION, LAST = 0.5, 0.5, 2.5  # what these take, about


@dataclass(frozen=True)
class Plan:
    """Whom to kill and when: `delay` seconds after the `count`-th sign of the moment."""

    moment: str
    target: tuple[str, ...]
    delay: float
    count: int = 1

    @property
    def whom(self) -> str:
        """In words."""
        return "everything at once" if len(self.target) > 1 else WORDS[self.target[0]]

    def __str__(self) -> str:
        sign = {"anytime": "the start", "setup": "the start"}.get(self.moment, f"a sign of {self.moment}")
        return f"{self.whom}, {self.delay:.3f} s after {sign}"


def plans(trials: int, random: Random) -> list[Plan]:
    """Every moment in its share and every target equally often, in a random order."""
    moments = [moment for moment, share in zip(MOMENTS, SHARES, strict=True) for _ in range(round(share * trials))]
    moments = (moments + ["anytime"] * trials)[:trials]
    targets = [TARGETS[i % len(TARGETS)] for i in range(trials)]
    random.shuffle(moments)
    random.shuffle(targets)
    longest = {"anytime": SETUP + LIFE, "save": SAVE, "setup": SETUP, "evaluation": EVALUATION, "end": LAST}
    return [Plan(moment, target, random.uniform(0, longest[moment]), random.randint(1, 4))
            for moment, target in zip(moments, targets, strict=True)]


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """`trials` kills, over as many runs as they take; every run is brought to its end and compared."""
    reference, number, killed, waiting = work.reference(), 1, 0, []
    current = work.fresh(f"killed-{number}")
    todo = plans(trials, work.random)
    while todo or waiting or not _complete(current, work):
        plan = todo[0] if todo else None
        with work.session(work.flags(current), f"kill-{killed + 1:02d}") as session:
            blow = _strike(session, current, plan, work) if plan else None
            if blow is None:
                status = session.wait_end()
                _settle(waiting, session, work, journal)
                if status != 0 or not _complete(current, work):
                    problem = f"ended with {status}: {session.output[-500:]} ({session.log.name})"
                    journal.add(Trial(CATEGORY, "a start that nobody killed", [problem]))
                    break
                _judge_finished(current, reference, number, journal)
                number += 1
                if todo:
                    current = work.fresh(f"killed-{number}")
                else:
                    break
                continue
            todo.pop(0)
            killed += 1
            trial = Trial(CATEGORY, f"{killed}: {plan}",
                          facts={"log": session.log.name, "killed": plan.whom, "moment": plan.moment,
                                 "reached": blow.reached, "doing": blow.doing})
            _watch_the_end(trial, session)
            _settle(waiting, session, work, journal)
            waiting.append((trial, blow.reached))


@dataclass(frozen=True)
class Blow:
    """What the run was at when it was killed."""

    reached: int
    doing: str


def _complete(run_folder: Path, work: Workplace) -> bool:
    return (run_folder / "summary.json").is_file() and compare.last_step(run_folder) == work.pace.steps


def _strike(session: Session, run_folder: Path, plan: Plan, work: Workplace) -> Blow | None:
    """Wait for the moment and kill; None if the run ended before."""
    if not session.wait_until(_sign(session, run_folder, plan, work), pause=0.002):
        return None
    time.sleep(plan.delay)
    if not session.wait_until(lambda: session.processes(*plan.target), limit=30):
        return None
    doing = _doing(session, run_folder, work.pace.steps)
    if not session.send(SIGKILL, *plan.target):
        return None
    return Blow(compare.last_step(run_folder), doing)


def _sign(session: Session, run_folder: Path, plan: Plan, work: Workplace) -> Callable[[], bool]:
    """Whether the moment has begun."""
    if plan.moment in ("anytime", "setup"):
        return lambda: True
    if plan.moment == "save":
        return _Saves(run_folder / "checkpoints", plan.count)
    if plan.moment == "end":
        return lambda: session.announced is not None and compare.last_step(run_folder) == work.pace.steps
    return _Evaluations(session, run_folder, work.pace.evaluate)


class _Saves:
    """True once the `count`-th half-written checkpoint of this session has appeared."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.seen = set(self._names())  # left by a session that was killed

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.glob("*.partial")] if self.folder.is_dir() else []

    def __call__(self) -> bool:
        new = set(self._names()) - self.seen
        self.count -= len(new)
        self.seen |= new
        return self.count <= 0


class _Evaluations:
    """True when a training line of a step with an evaluation is newer than the session."""

    def __init__(self, session: Session, run_folder: Path, interval: int) -> None:
        self.session, self.file, self.interval = session, run_folder / "metrics.jsonl", interval

    def __call__(self) -> bool:
        try:
            tail = self.file.read_bytes()[-4096:].rstrip(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")
        except OSError:
            return False
        step = _step_of(tail)
        return bool(step) and step % self.interval == 0 and self.session.announced is not None \
            and step > self.session.announced


def _step_of(line: str) -> int | None:
    """The step of a training line."""
    head, _, rest = line.partition('"split": "train"')
    if not rest:
        return None
    return int("".join(letter for letter in head if letter.isdigit()) or 0)


def _doing(session: Session, run_folder: Path, steps: int) -> str:
    """What the run is at, as far as it can be seen from outside."""
    if session.announced is None:
        return "starting"
    partial = (run_folder / "checkpoints").glob("*.partial")
    with contextlib.suppress(FileNotFoundError):  # renamed between two looks
        if any(path.stat().st_mtime > session.wall_started for path in partial):
            return "saving"
    return "ending" if compare.last_step(run_folder) == steps else "training"


def _watch_the_end(trial: Trial, session: Session) -> None:
    """No process may outlive the kill for long, and none may go on listening."""
    trial.seconds_to_stop = session.wait_gone(GIVE_UP)
    left = session.sweep()
    trial.expect(trial.seconds_to_stop is not None and trial.seconds_to_stop <= STOP_LIMIT,
                 f"after {GIVE_UP:.0f} s there still were {', '.join(p.role for p in left)}" if left
                 else f"the last process went after {trial.seconds_to_stop} s, limit {STOP_LIMIT:.0f}")
    trial.expect(not session.port_bound, f"port {session.port} is still bound")


def _settle(waiting: list[tuple[Trial, int]], session: Session, work: Workplace, journal: Journal) -> None:
    """A start has said where it continues from (or was killed before): judge the kills that it follows."""
    step = session.announced
    if step is None and _complete_message(session):
        step = work.pace.steps
    if step is None:
        return
    for trial, reached in waiting:
        trial.facts["continued_from"] = step
        trial.steps_lost = max(0, reached - step)
        trial.expect(trial.steps_lost <= work.pace.save,
                     f"{trial.steps_lost} steps lost, save_interval {work.pace.save} (next start: {session.log.name})")
        journal.add(trial)
    waiting.clear()


def _complete_message(session: Session) -> bool:
    return "has finished its" in session.output


def _judge_finished(run_folder: Path, reference: Path, number: int, journal: Journal) -> None:
    trial = Trial("kills: finished runs", f"run {number} against the uninterrupted one")
    trial.problems += compare.differences(run_folder, reference)
    journal.add(trial)

"""SIGKILL at random moments of a run's whole life, and the same command again each time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import SIGKILL

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.session import Session
from stress.chaos.workplace import Workplace

CATEGORY = "kills"
TARGETS = (("rank0",), ("rank1",), ("ranks",), ("launch",), ("runner",), ("runner", "launch", "ranks"))
WORDS = {
    "rank0": "rank 0",
    "rank1": "rank 1",
    "ranks": "both ranks",
    "launch": "launch.py",
    "runner": "the deepspeed command",
}
MOMENTS = ("set-up", "training", "save", "evaluation", "end")
SHARES = (0.16, 0.3, 0.3, 0.12, 0.12)
# seconds after the moment's sign until the kill, at most; of a set-up, a share of how long the last one took
LONGEST = {"set-up": 1.0, "training": 0.3, "save": 0.25, "evaluation": 0.5, "end": 2.5}
MOST = {"set-up": 1, "training": 25, "save": 4, "evaluation": 2, "end": 1}  # signs to wait for
FIRST_SET_UP = 15.0
STOP_LIMIT = 60.0  # seconds in which no process may be left
GIVE_UP = 90.0


@dataclass(frozen=True)
class Plan:
    """Whom to kill and when: `delay` after the `count`-th sign of the moment."""

    moment: str
    target: tuple[str, ...]
    delay: float
    count: int = 1

    @property
    def whom(self) -> str:
        """The processes that are killed, in words."""
        first, *others = self.target
        return "everything at once" if others else WORDS[first]

    def __str__(self) -> str:
        if self.moment == "set-up":
            return f"{self.whom}, at {self.delay:.0%} of the set-up"
        sign = {"training": "step", "save": "half-written checkpoint", "evaluation": "evaluation", "end": "last step"}[
            self.moment
        ]
        return f"{self.whom}, {self.delay * 1000:.0f} ms after {sign} {self.count} of the session"


def plans(trials: int, random: Random) -> list[Plan]:
    """Every moment in its share and every target equally often, in a random order."""
    moments = [moment for moment, share in zip(MOMENTS, SHARES, strict=True) for _ in range(round(share * trials))]
    moments = (moments + ["training"] * trials)[:trials]
    targets = [TARGETS[i % len(TARGETS)] for i in range(trials)]
    random.shuffle(moments)
    random.shuffle(targets)
    return [
        Plan(moment, target, random.uniform(0, LONGEST[moment]), random.randint(1, MOST[moment]))
        for moment, target in zip(moments, targets, strict=True)
    ]


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """`trials` kills, over as many runs as they take; every run is brought to its end and compared."""
    siege = Siege(work, journal, plans(trials, work.random))
    while siege.session():
        pass


class Siege:
    """Start, kill, start again; a run that came to its end all the same is compared, and the next one begun."""

    def __init__(self, work: Workplace, journal: Journal, todo: list[Plan]) -> None:
        self.work, self.journal, self.todo = work, journal, todo
        self.reference = work.reference()
        self.number, self.killed, self.set_up = 1, 0, FIRST_SET_UP
        self.run = work.fresh("killed-1")
        self.waiting: list[tuple[Trial, int]] = []  # kills, and the step they came at, that no start has followed yet

    def session(self) -> bool:
        """One start; False after the last."""
        with self.work.session(self.work.flags(self.run), f"kill-{self.killed + 1:02d}") as session:
            reached = self._strike(session, self.todo[0]) if self.todo else None
            if reached is None:
                return self._ended(session)
            plan = self.todo.pop(0)
            self.killed += 1
            trial = Trial(
                CATEGORY,
                f"{self.killed}: {plan}",
                facts={
                    "log": session.log.name,
                    "killed": plan.whom,
                    "moment": plan.moment,
                    "reached": reached,
                },
            )
            _watch_the_end(trial, session)
            self._settle(session)
            # a run whose launcher was killed may have gone on for a while
            self.waiting.append((trial, max(reached, compare.last_step(self.run))))
        return True

    def _strike(self, session: Session, plan: Plan) -> int | None:
        """Wait for the moment and kill; return the step reached, or None if the run ended before."""
        begun = self._watched_set_up(session, plan)
        if not begun or not session.wait_until(_sign(session, self.run, plan, self.work), pause=0.002):
            return None
        time.sleep(plan.delay * (self.set_up if plan.moment == "set-up" else 1))
        session.wait_until(lambda: session.processes(*plan.target), limit=30)
        if session.ended or not session.send(SIGKILL, *plan.target):
            return None
        return compare.last_step(self.run)

    def _watched_set_up(self, session: Session, plan: Plan) -> bool:
        """Measure it where it is not what the kill is aimed at."""
        if plan.moment == "set-up":
            return True
        begun = session.wait_until(lambda: session.announced is not None)
        self.set_up = session.seconds
        return begun

    def _ended(self, session: Session) -> bool:
        """Nobody killed this one: it must have come to the run's end. Whether there is more to do."""
        status = session.wait_end()
        self._settle(session)
        if status != 0 or not _finished(self.run):
            self.journal.add(
                Trial(
                    CATEGORY,
                    "a start that nobody killed",
                    [f"ended with {status}: {session.output[-500:]} ({session.log.name})"],
                )
            )
            return False
        trial = Trial("kills: finished runs", f"run {self.number} against the uninterrupted one")
        trial.problems += compare.differences(self.run, self.reference)
        self.journal.add(trial)
        self.number += 1
        if self.todo:
            self.run = self.work.fresh(f"killed-{self.number}")
        return bool(self.todo)

    def _settle(self, session: Session) -> None:
        """A start has said where it continues from (or was killed before): judge the kills that it follows."""
        step = self.work.pace.steps if "has finished its" in session.output else session.announced
        if step is None:
            return
        for trial, reached in self.waiting:
            trial.facts["continued from"] = step
            trial.steps_lost = max(0, reached - step)
            trial.expect(
                trial.steps_lost <= self.work.pace.save,
                f"{trial.steps_lost} steps lost, save_interval is "
                f"{self.work.pace.save} (next start: {session.log.name})",
            )
            self.journal.add(trial)
        self.waiting.clear()


def _finished(run_folder: Path) -> bool:
    summary = run_folder / "summary.json"
    return summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["reason"] == "finished"


def _sign(session: Session, run_folder: Path, plan: Plan, work: Workplace) -> Callable[[], bool]:
    """Whether the moment has begun."""
    if plan.moment == "set-up":
        return lambda: True
    if plan.moment == "save":
        return _Saves(session, run_folder / "checkpoints", plan.count)
    begun, pace = session.announced or 0, work.pace
    due = {
        "training": begun + plan.count,
        "evaluation": (begun // pace.evaluate + plan.count) * pace.evaluate,  # it follows the line of its step
        "end": pace.steps,
    }[plan.moment]
    return lambda: compare.last_step(run_folder) >= due


class _Saves:
    """True once the `count`-th half-written checkpoint of this session has appeared."""

    def __init__(self, session: Session, folder: Path, count: int) -> None:
        self.session, self.folder, self.count = session, folder, count
        self.seen: set[str] = set()

    def __call__(self) -> bool:
        self.seen |= set(_partial(self.session, self.folder))
        return len(self.seen) >= self.count


def _partial(session: Session, folder: Path) -> list[str]:
    """Half-written checkpoints that are not those of a session before."""
    names = []
    for path in folder.glob("*.partial") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # renamed between two looks
            if path.stat().st_mtime > session.wall_started:
                names.append(path.name)
    return names


def _watch_the_end(trial: Trial, session: Session) -> None:
    """No process may outlive the kill for long, and none may go on listening."""
    trial.seconds_to_stop = session.wait_gone(GIVE_UP)
    left = session.sweep()
    trial.expect(
        trial.seconds_to_stop is not None and trial.seconds_to_stop <= STOP_LIMIT,
        f"after {GIVE_UP:.0f} s there still were {', '.join(p.role for p in left)}"
        if left
        else f"the last process went after {trial.seconds_to_stop} s, limit {STOP_LIMIT:.0f}",
    )
    trial.expect(not session.port_bound, f"port {session.port} is still bound")

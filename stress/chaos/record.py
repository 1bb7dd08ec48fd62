"""What the trials found: a line of JSON each, and tables of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Trial:
    """One thing done to a run. `problems` is empty if the run survived it.

    `steps_lost` are those done again after it; `seconds_to_stop` from the blow until no process was left.
    """

    category: str
    name: str
    problems: list[str] = field(default_factory=list)
    steps_lost: int | None = None
    seconds_to_stop: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def survived(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    def expect(self, true: object, problem: str) -> None:
        """Take note of `problem` unless `true`."""
        if not true:
            self.problems.append(problem)


class Journal:
    """Trials as they end: appended to FOLDER/trials.jsonl and said on the terminal."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"
        self.trials: list[Trial] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, trial: Trial) -> None:
        """Keep and show it."""
        self.trials.append(trial)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial), ensure_ascii=False) + "\n")
        print(
            f"{'ok  ' if trial.survived else 'FAIL'} {trial.category}: {trial.name}{_figures(trial)}"
            + "".join(f"\n       {problem}" for problem in trial.problems),
            flush=True,
        )


def read(path: Path) -> list[Trial]:
    """The trials of an earlier journal."""
    return [Trial(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _figures(trial: Trial) -> str:
    parts = [] if trial.steps_lost is None else [f"{trial.steps_lost} steps lost"]
    parts += [] if trial.seconds_to_stop is None else [f"gone after {trial.seconds_to_stop:.1f} s"]
    parts += [f"{name} {_short(value)}" for name, value in trial.facts.items() if name != "log"]
    return f" ({', '.join(parts)})" if parts else ""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def closing_table(trials: Sequence[Trial]) -> str:
    """Markdown: a line a category, and one for all."""
    lines = ["| trials | tried | survived | steps lost at most | seconds to stop at most |", "|---|---|---|---|---|"]
    for category in dict.fromkeys(trial.category for trial in trials):
        lines.append(_row(category, [trial for trial in trials if trial.category == category]))
    lines.append(_row("all", trials))
    return "\n".join(lines)


def grouped_table(trials: Sequence[Trial], fact: str) -> str:
    """Markdown: a line for each value of a fact."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if fact in trial.facts:
            groups.setdefault(str(trial.facts[fact]), []).append(trial)
    return "\n".join(
        [
            f"| {fact} | tried | survived | steps lost at most | seconds to stop at most |",
            "|---|---|---|---|---|",
            *(_row(name, groups[name]) for name in sorted(groups)),
        ]
    )


def _row(name: str, trials: Sequence[Trial]) -> str:
    lost = _most([trial.steps_lost for trial in trials])
    seconds = _most([trial.seconds_to_stop for trial in trials])
    return (
        f"| {name} | {len(trials)} | {sum(trial.survived for trial in trials)} | {'-' if lost is None else lost} | "
        f"{'-' if seconds is None else f'{seconds:.1f}'} |"
    )


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def detail_table(trials: Sequence[Trial]) -> str:
    """Markdown: a line a trial; columns that none of them fills are left out."""
    columns: dict[str, list[str | None]] = {
        "trial": [f"{trial.name}{'' if trial.survived else ' **FAILED**'}" for trial in trials],
        "steps lost": [None if trial.steps_lost is None else str(trial.steps_lost) for trial in trials],
        "seconds to stop": [
            None if trial.seconds_to_stop is None else f"{trial.seconds_to_stop:.1f}" for trial in trials
        ],
        "found": [_found(trial) for trial in trials],
    }
    filled = {name: values for name, values in columns.items() if any(values)}
    lines = [" | ".join(["", *filled, ""]).strip(), "|" + "---|" * len(filled)]
    lines += [
        " | ".join(["", *(value or "-" for value in row), ""]).strip() for row in zip(*filled.values(), strict=True)
    ]
    return "\n".join(lines)


def _found(trial: Trial) -> str | None:
    found = ", ".join(f"{name} {_short(value)}" for name, value in trial.facts.items() if name != "log")
    return "; ".join([*trial.problems, *([found] if found else [])]) or None

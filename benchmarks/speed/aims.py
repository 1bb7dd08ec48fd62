"""The table of aims, with what the last runs of the parts found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.step import experts_against_dense

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """`figure` reads the value out of a part's result: None if it was never reached, KeyError if not measured."""

    what: str
    part: str
    aim: float
    figure: Callable[[dict[str, Any]], float | None]
    unit: str = "x"
    at_most: bool = False

    def line(self, results: Results) -> str:
        """A row of the table."""
        try:
            value = self.figure(results[self.part])
        except KeyError:  # the part did not run, or not in full
            found, verdict = "-", "not measured"
        else:
            found = "never" if value is None else self._shown(value)
            verdict = "reached" if value is not None and self._good(value) else "missed"
        bound = "at most" if self.at_most else "at least"
        return f"| {self.what} | {bound} {self._shown(self.aim)} | {found} | {verdict} | `--only {self.part}` |"

    def _good(self, value: float) -> bool:
        return value <= self.aim if self.at_most else value >= self.aim

    def _shown(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.3g} {self.unit}"


def _race(run: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda result: result["ours"][run]["against_peer"][name]


def _outside(result: dict[str, Any]) -> float:
    return max(line["outside"] for line in result["lines"] if line["processes"] == 1)


def _generation(result: dict[str, Any]) -> float:
    return min(row["ratio"] for row in result["rows"] if row["batch"] == 1)


AIMS = [
    Aim("time to the peer's final loss, best precision", "race", 8, _race("best", "seconds_ratio")),
    Aim("the same at the peer's precision", "race", 4, _race("equal", "seconds_ratio")),
    Aim("non-padding tokens/s, equal shape and precision", "race", 2.5, _race("equal", "tokens_per_second_ratio")),
    Aim(
        "MoE step over the dense step of the same active width (worst case)",
        "step",
        1.25,
        lambda result: max(experts_against_dense(result["lines"]).values()),
        at_most=True,
    ),
    Aim("time outside compute, one process (worst case)", "step", 0.05, _outside, "%", at_most=True),
    Aim(
        "2 processes against 1 on 2 cores, of linear",
        "scaling",
        0.9,
        lambda result: result["efficiency"]["median"],
        "%",
    ),
    Aim(
        "preparation, of bare encode_batch (worst case)",
        "preparation",
        0.9,
        lambda result: min(row["share_of_encode"] for row in result["rows"]),
        "%",
    ),
    Aim("generation, batch 1, over transformers.generate (worst case)", "generation", 3, _generation),
    Aim(
        "one epoch of the reference run's data on two T4s, cost model",
        "t4",
        40,
        lambda result: result["epochs"]["mid"]["minutes"],
        "min",
        at_most=True,
    ),
]


def table(work: Path) -> list[str]:
    """Markdown, from the results that lie in the folder."""
    results: Results = {
        aim.part: json.loads(path.read_text(encoding="utf-8"))
        for aim in AIMS
        if (path := work / f"{aim.part}.json").is_file()
    }
    return [
        "| what | aim | measured | | python -m benchmarks.speed |",
        "|---|---|---|---|---|",
        *(aim.line(results) for aim in AIMS),
    ]

"""Runs that differ in the seed alone are one experiment: its mean, its spread, and which experiments differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from experiments.run_figures import ComparedRun
from experiments.settings import SEED, differences, experiment_key, short_names, show_value
from experiments.statistics import ALPHA, holm, welch

LONGEST_LABEL = 40


@dataclass
class Experiment:
    """Runs of one configuration, `settings`; `values` holds one loss a seed, of the runs that are judged."""

    runs: list[ComparedRun]
    settings: dict[str, Any]
    label: str = ""
    values: dict[Any, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean over the seeds, None if no run is judged."""
        return mean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds, None with fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def take_values(self, value_of: Callable[[ComparedRun], float | None]) -> None:
        """Take one value for each seed: copies of a run, or a run that was repeated, are no second draw."""
        found: dict[Any, list[float]] = {}
        for run in self.runs:
            if (value := value_of(run)) is not None:
                found.setdefault(run.seed, []).append(value)
        self.values = {seed: mean(values) for seed, values in found.items()}

    @property
    def representative(self) -> ComparedRun:
        """The run whose best loss is the lowest: its samples are shown."""
        return min(self.runs, key=lambda run: float("inf") if run.best is None else run.best)


def group(runs: Sequence[ComparedRun]) -> list[Experiment]:
    """Return the experiments of some runs, in the order of their first runs, with labels."""
    found: dict[object, Experiment] = {}
    for run in runs:
        # a folder with nothing but metrics says nothing that another could share with it
        key = experiment_key(run.settings) if run.record.flags else run.name
        shared = {name: value for name, value in run.settings.items() if name != SEED}
        found.setdefault(key, Experiment([], shared)).runs.append(run)
    experiments = list(found.values())
    _label(experiments)
    return experiments


def _label(experiments: Sequence[Experiment]) -> None:
    """Name each by the values that differ if they are few and short, and by the name of its first run otherwise."""
    differing = differences([experiment.settings for experiment in experiments])
    shorts = short_names(list(differing))
    for k, experiment in enumerate(experiments):
        words = [f"{shorts[name]}={show_value(values[k])}" for name, values in differing.items()]
        experiment.label = " ".join(words)
    labels = [experiment.label for experiment in experiments]
    if len(set(labels)) < len(labels) or not all(0 < len(label) <= LONGEST_LABEL for label in labels):
        for experiment in experiments:
            experiment.label = experiment.runs[0].name


def compare_pairs(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Return a test for each pair of experiments that have values, the lower mean first.

    Holm's correction of `p` is for all pairs, not those with the best alone: which one is best is chosen by looking at
    the results. `differs` says whether the difference is more than the noise of seeds, None if that cannot be known.
    """
    judged = [experiment for experiment in experiments if experiment.values]
    pairs = list(combinations(sorted(judged, key=lambda experiment: experiment.mean or 0.0), 2))
    tests = [welch(list(a.values.values()), list(b.values.values())) for a, b in pairs]
    corrected = iter(holm([test.p for test in tests if test]))
    found = []
    for (a, b), test in zip(pairs, tests, strict=True):
        p = next(corrected) if test else None
        found.append(
            {
                "better": a.label,
                "worse": b.label,
                "difference": (b.mean or 0.0) - (a.mean or 0.0),
                "margin": test.margin if test else None,
                "p": p,
                "differs": None if p is None else p < ALPHA,
            }
        )
    return found

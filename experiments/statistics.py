"""Is a difference between two recipes larger than the noise of their seeds?

Welch's t-test on the runs' losses, one value a seed, two-sided; with Holm's correction where several pairs are
compared, so that among equal recipes a difference is found in at most ALPHA of all comparisons. A permutation test
would need four seeds of each before it could find anything at this level: three against three can be drawn in 20 ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from scipy.stats import ttest_ind

ALPHA = 0.05
FEWEST = 2  # seeds of each side: with one there is no spread to compare a difference with


class WelchTest(NamedTuple):
    """`difference` is mean(b) - mean(a); `margin` is half of its 95 % confidence interval."""

    difference: float
    margin: float
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> WelchTest | None:
    """Return Welch's t-test of two samples; None if one has fewer than two values, or neither has any spread."""
    if min(len(a), len(b)) < FEWEST or len({*a}) == len({*b}) == 1:
        return None
    found: Any = ttest_ind(b, a, equal_var=False)
    low, high = found.confidence_interval(1 - ALPHA)
    return WelchTest(mean(b) - mean(a), float(high - low) / 2, float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number (Holm 1979): compare them with the level of all together."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected

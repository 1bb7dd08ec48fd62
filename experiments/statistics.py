"""Is a difference between two recipes larger than the noise of their seeds?

Welch's t-test on the runs' losses, one value a seed, two-sided; with Holm's correction where several pairs are
compared, so that among equal recipes a difference is found in at most ALPHA of all comparisons. A permutation test
would need four seeds of each before it could find anything at this level: three against three can be drawn in 20 ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev

import numpy as np

ALPHA = 0.05
FEWEST = 2  # seeds of each side: with one there is no spread to compare a difference with


@dataclass(frozen=True)
class WelchTest:
    """`difference` is mean(b) - mean(a); `margin` is half of its 95 % confidence interval."""

    difference: float
    margin: float
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> WelchTest | None:
    """Return Welch's t-test of two samples; None if one has fewer than two values, or neither has any spread."""
    if min(len(a), len(b)) < FEWEST:
        return None
    parts = [stdev(values) ** 2 / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return None
    # Welch-Satterthwaite
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    difference = mean(b) - mean(a)
    return WelchTest(difference, error * t_quantile(ALPHA, freedom), t_two_sided(abs(difference) / error, freedom))


def t_two_sided(t: float, freedom: float) -> float:
    """Return the probability that Student's t with so many degrees of freedom is at least `t` from zero.

    With t = sqrt(freedom) tan(angle) the density becomes cos(angle) ** (freedom - 1), up to a constant.
    """
    nodes, weights = _legendre()
    start = math.atan(t / math.sqrt(freedom))
    # the square of a variable that ends at 0 there, because the power may have a sharp corner at the right angle
    rest = math.sqrt(math.pi / 2 - start)
    distances = (rest * (nodes + 1) / 2) ** 2
    integral = float(np.sum(weights * np.sin(distances) ** (freedom - 1) * rest * (nodes + 1) / 2 * rest))
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return min(1.0, 2 * integral / whole)


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of Gauss' rule, which take some milliseconds."""
    return np.polynomial.legendre.leggauss(100)


def t_quantile(p: float, freedom: float) -> float:
    """Return the t whose two-sided probability is `p`."""
    low, high = 0.0, 1e4
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > p else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number (Holm 1979): compare them with the level of all together."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected

"""Loss as a function of parameters and tokens: L = E + A / N^a + B / D^b (Hoffmann et al., 2022, approach 3).

Fitted as there: Huber's loss on differences of logarithms, from several starting points. The uncertainty of a
prediction is the spread of the laws that are fitted with one run left out each (jackknife), beside what the law misses
its own runs by. It knows nothing of what changes beyond the runs, such as text that is read more than once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import logsumexp

HUBER = 1e-3
FEWEST = 6  # runs: the law has five constants


@dataclass(frozen=True)
class Run:
    """Parameters, tokens and the loss (bits a byte of held-out text) at the end."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """The five constants; `floor` in the unit of the loss."""

    floor: float
    size_factor: float
    size_exponent: float
    token_factor: float
    token_exponent: float

    def __call__(self, parameters: float, tokens: float) -> float:
        """Return the loss that it expects."""
        return (
            self.floor
            + self.size_factor / parameters**self.size_exponent
            + self.token_factor / tokens**self.token_exponent
        )

    def logarithms(self) -> tuple[float, float, float, float, float]:
        """Return the constants as they are searched for: the factors by their logarithms."""
        factors = (math.log(factor) for factor in (self.floor, self.size_factor, self.token_factor))
        floor, size_factor, token_factor = factors
        return floor, size_factor, self.size_exponent, token_factor, self.token_exponent


@dataclass(frozen=True)
class Prediction:
    """An expected loss and half the width of its 95 % interval."""

    loss: float
    margin: float


def fit(runs: Sequence[Run], start: Law | None = None) -> Law:
    """Return the law nearest to the runs; ValueError if they are too few to know it by."""
    if len(runs) < FEWEST or len({run.parameters for run in runs}) < 3 or len({run.tokens for run in runs}) < 3:
        raise ValueError(f"{len(runs)} runs: at least {FEWEST} are needed, of three sizes and three lengths")
    sizes, tokens = (np.log([getattr(run, name) for run in runs]) for name in ("parameters", "tokens"))
    losses = np.log([run.loss for run in runs])

    def missed(constants: np.ndarray) -> np.ndarray:
        floor, size_factor, a, token_factor, b = constants
        parts = np.stack([np.full_like(sizes, floor), size_factor - a * sizes, token_factor - b * tokens])
        return logsumexp(parts, axis=0) - losses

    starts = [start.logarithms()] if start else itertools.product((0.0,), (0.0, 5.0), (0.4,), (0.0, 5.0), (0.4,))
    results = (least_squares(missed, place, loss="huber", f_scale=HUBER) for place in starts)
    floor, size_factor, a, token_factor, b = min(results, key=lambda result: result.cost).x
    return Law(math.exp(floor), math.exp(size_factor), float(a), math.exp(token_factor), float(b))


def predict(runs: Sequence[Run], parameters: float, tokens: float) -> Prediction:
    """Return what to expect of a run, by the law of all runs and by those of all but one."""
    law = fit(runs)
    expected = law(parameters, tokens)
    without = [fit([*runs[:k], *runs[k + 1 :]], law)(parameters, tokens) for k in range(len(runs))]
    count = len(runs)
    jackknife = (count - 1) / count * sum((other - float(np.mean(without))) ** 2 for other in without)
    own = float(np.mean([(law(run.parameters, run.tokens) - run.loss) ** 2 for run in runs])) * count / (count - 5)
    return Prediction(expected, 1.96 * math.sqrt(jackknife + own))

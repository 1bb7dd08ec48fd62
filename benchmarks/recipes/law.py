"""Fit the law of `training/planning/expected_loss.py` to the studies' runs.

Least squares on logarithms of the loss, with a weak expectation of the floor from larger studies, which a few small
sizes leave undetermined. The covariance is that of the constants under both (Laplace's approximation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, least_squares

from training.planning.expected_loss import MILLION, FittedForm, FittedLaw, Law

FEWEST = 6  # runs: the law has five constants
SEED_NOISE = 0.0021  # standard deviation of equal runs, as a share of the loss (the study "equal")
# Hoffmann et al. (2022) found 1.69 nats a token of English, 0.57 bits a byte; mean and deviation of the logarithm
FLOOR, FLOOR_DEVIATION = math.log(0.55), 0.3


@dataclass(frozen=True)
class Run:
    """Parameters that a token meets, tokens and the loss (bits a byte of held-out text) at the end."""

    parameters: float
    tokens: float
    loss: float


def fit(runs: Sequence[Run]) -> FittedLaw:
    """Return the law nearest to the runs in both its forms; ValueError if they are too few to know it by."""
    if len(runs) < FEWEST or len({run.parameters for run in runs}) < 3 or len({run.tokens for run in runs}) < 3:
        raise ValueError(f"{len(runs)} runs: at least {FEWEST} are needed, of three sizes and three lengths")
    return FittedLaw(
        forms=(_fit(runs, coupled=True), _fit(runs, coupled=False)),
        largest_parameters=max(run.parameters for run in runs),
        largest_compute=max(run.parameters * run.tokens for run in runs),
    )


def _fit(runs: Sequence[Run], *, coupled: bool) -> FittedForm:
    sizes, tokens = (np.log([getattr(run, name) / MILLION for run in runs]) for name in ("parameters", "tokens"))
    losses = np.log([run.loss for run in runs])

    def missed(constants: np.ndarray) -> np.ndarray:
        floor, size_factor, a, token_factor, b = constants
        power = b if coupled else 1.0
        fallen = power * np.logaddexp((size_factor - a * sizes) / power, (token_factor - b * tokens) / power)
        return np.logaddexp(floor, fallen) - losses

    def balance(noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Weigh what the runs say, with such a noise, against what is expected; return constants and covariance."""

        def errors(constants: np.ndarray) -> np.ndarray:
            return np.append(missed(constants) / noise, (constants[0] - FLOOR) / FLOOR_DEVIATION)

        starts = itertools.product((-0.6,), (-0.5, 0.3), (0.1, 0.3), (-0.5, 0.5), (0.2, 0.4))
        best = min((least_squares(errors, start) for start in starts), key=lambda result: result.cost)
        return best.x, np.linalg.inv(best.jac.T @ best.jac)

    first, _ = balance(SEED_NOISE)
    misfit = max(SEED_NOISE, math.sqrt(float(np.sum(missed(first) ** 2)) / max(1, len(runs) - 5)))
    constants, covariance = balance(misfit)
    return FittedForm(
        coupled=coupled,
        logarithms=[round(value, 5) for value in constants.tolist()],
        covariance=[[float(f"{value:.4g}") for value in row] for row in covariance.tolist()],
        misfit=round(misfit, 5),
    )


def tokens_for(law: Law, parameters: float, loss: float) -> float:
    """Return the tokens after which a size has a loss by the law; ValueError if it never has."""
    return MILLION * math.exp(brentq(lambda log: law(parameters, MILLION * math.exp(log)) - loss, -10, 20))

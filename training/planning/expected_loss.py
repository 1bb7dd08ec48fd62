"""What loss to expect of a run of N parameters (those a token meets) and D tokens, by laws fitted on small runs.

Two forms, L = E + ((A / N^a)^(1/b) + B / D)^b (Kaplan et al., 2020, equation 1.5, with a floor) and
L = E + A / N^a + B / D^b (Hoffmann et al., 2022), agree near the runs and part far away from them: the first is what is
expected, and how far the second is from it goes into the interval, as does how far a prediction was once off.
`python -m benchmarks.recipes fit` fitted the constants, in `expected_loss.json`, on runs of cpu_x2.json's recipe over
prose in Chinese; docs/dev/recipes.md holds the runs. On other text the figure is another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from common.files import read_object

FITTED = Path(__file__).with_suffix(".json")
MILLION = 1e6
HALF_LIFE = 15.4  # passes over a text, R* of Muennighoff et al. (2023): how fast repeated tokens lose their worth
GOOD_PASSES = 4  # that are nearly as good as new text (the same)
# Of the loss, for each factor e of compute beyond the largest run: one prediction missed by 5 % at 12 times
FAR_MISS = 0.02
TOKENS_A_PARAMETER = 20  # where compute is spent best (Hoffmann et al., 2022)


@dataclass(frozen=True)
class Law:
    """The five constants of either form; N and D in millions, the loss in bits a byte.

    `coupled` is the first form, in which more parameters need more tokens to be of use. `token_factor` is B to the
    power of b there.
    """

    coupled: bool
    floor: float
    size_factor: float
    size_exponent: float
    token_factor: float
    token_exponent: float

    def __call__(self, parameters: float, tokens: float) -> float:
        """Return the loss that it expects of so many parameters and tokens."""
        of_size = self.size_factor / (parameters / MILLION) ** self.size_exponent
        of_tokens = self.token_factor / (tokens / MILLION) ** self.token_exponent
        power = self.token_exponent if self.coupled else 1.0
        return self.floor + (of_size ** (1 / power) + of_tokens ** (1 / power)) ** power


@dataclass(frozen=True)
class Expectation:
    """An expected loss in bits a byte and half the width of its 95 % interval."""

    loss: float
    margin: float

    def __str__(self) -> str:
        return f"{self.loss:.2f} ± {max(self.margin, 0.01):.2f}"


class FittedForm(BaseModel):
    """The constants of one form, the floor and the factors by their logarithms, and how well they are known."""

    coupled: bool
    logarithms: list[float]
    covariance: list[list[float]]
    misfit: float
    """Standard deviation of its own runs around it, as a share of the loss."""

    def law(self, logarithms: Sequence[float] | None = None) -> Law:
        """Return the law itself, or one with other constants."""
        floor, size_factor, a, token_factor, b = self.logarithms if logarithms is None else logarithms
        return Law(self.coupled, math.exp(floor), math.exp(size_factor), a, math.exp(token_factor), b)

    def expect(self, parameters: float, tokens: float) -> Expectation:
        """Return what to expect; the interval is that of the constants (by the delta method) and of single runs."""
        place, expected = np.asarray(self.logarithms), self.law()(parameters, tokens)
        steps = 1e-4 * np.eye(len(place))
        around = [[self.law(place + sign * step)(parameters, tokens) for sign in (1, -1)] for step in steps]
        slope = np.array([(above - below) / 2e-4 for above, below in around])
        variance = slope @ np.asarray(self.covariance) @ slope + (self.misfit * expected) ** 2
        return Expectation(expected, 1.96 * math.sqrt(variance))


class FittedLaw(BaseModel):
    """Both forms, the largest run behind them, and what another optimizer needs."""

    forms: tuple[FittedForm, FittedForm]
    largest_parameters: float
    largest_compute: float
    """Parameters times tokens of the run that has the most of both together."""
    adamw_tokens: float = 1.0
    """Tokens that AdamW at the best rate tried needs, at least, to the loss that Muon has after one."""

    @classmethod
    def load(cls, path: Path = FITTED) -> FittedLaw:
        """Read the fitted constants."""
        return cls(**read_object(path))

    def expect(self, parameters: float, tokens: float) -> Expectation:
        """Return what to expect of Muon's recipe by the first form.

        How far the second form is from it, and the distance to the largest run, widen the interval.
        """
        expected, other = (form.expect(parameters, tokens) for form in self.forms)
        beyond = max(0.0, math.log(parameters * tokens / self.largest_compute))
        missed = FAR_MISS * beyond * expected.loss
        return Expectation(expected.loss, math.hypot(expected.margin, other.loss - expected.loss, missed))

    def expect_adamw(self, parameters: float, tokens: float) -> Expectation:
        """Return what to expect of AdamW: what Muon has after fewer tokens, and no more surely than Muon itself."""
        expected = self.expect(parameters, tokens / self.adamw_tokens)
        return Expectation(expected.loss, max(expected.margin, self.expect(parameters, tokens).margin))


def best_size(operations: float, text: float) -> tuple[float, bool]:
    """Return about how many active parameters (with the embedding) so many operations are spent best on.

    Also whether a text of `text` tokens, read four times, is too little for more. The rule is that of Hoffmann et al.,
    whose runs were as large as ours would have to be, and not our own law.
    """
    by_compute, by_text = math.sqrt(operations / (6 * TOKENS_A_PARAMETER)), GOOD_PASSES * text / TOKENS_A_PARAMETER
    return min(by_compute, by_text), by_text < by_compute


def worth(tokens: float, text: float) -> float:
    """Return how many new tokens are worth as much as `tokens` read from a text of `text` tokens, in several passes.

    A second to fourth pass is nearly as good as new text, later ones less and less (Muennighoff et al., 2023).
    """
    repeated = max(0.0, tokens - text) / text
    return min(tokens, text) + text * HALF_LIFE * -math.expm1(-repeated / HALF_LIFE)

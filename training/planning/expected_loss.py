"""What loss to expect of a run: L = E + ((A / N^a)^(1/b) + B / D)^b for N parameters beside the embedding and D tokens.

That is Kaplan et al. (2020), equation 1.5, with a floor: the more parameters, the more tokens they need to be of use.
The constants, in `expected_loss.json`, were fitted by `python -m benchmarks.recipes fit` on runs of the fast recipe
over natural Chinese prose; docs/dev/recipes.md holds the runs, and what became of predictions made before a run. On
other text the figure is another one; what a larger model or more tokens change is a guide there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.files import read_object
from model import ModelConfig, count_parameters

FITTED = Path(__file__).with_suffix(".json")
MILLION = 1e6
HALF_LIFE = 15.4  # passes over a text (Muennighoff et al., 2023): their R*, how fast repeated tokens lose their worth
_SIZES = np.logspace(-1.5, 4, 400)  # millions of parameters among which the best size is looked for


@dataclass(frozen=True)
class Law:
    """The five constants; N and D in millions, the loss in bits a byte. `token_factor` is B to the power of b."""

    floor: float
    size_factor: float
    size_exponent: float
    token_factor: float
    token_exponent: float

    def __call__(self, parameters: float, tokens: float) -> float:
        """Return the loss that it expects of so many parameters and tokens."""
        size, length = parameters / MILLION, tokens / MILLION
        of_size = (self.size_factor / size**self.size_exponent) ** (1 / self.token_exponent)
        of_tokens = self.token_factor ** (1 / self.token_exponent) / length
        return self.floor + (of_size + of_tokens) ** self.token_exponent

    @classmethod
    def of(cls, logarithms: Sequence[float]) -> Law:
        """Return the law whose floor and factors are given by their logarithms, as they are fitted."""
        floor, size_factor, a, token_factor, b = logarithms
        return cls(math.exp(floor), math.exp(size_factor), a, math.exp(token_factor), b)


@dataclass(frozen=True)
class Expectation:
    """An expected loss in bits a byte and half the width of its 95 % interval."""

    loss: float
    margin: float

    def __str__(self) -> str:
        return f"{self.loss:.2f} ± {max(self.margin, 0.01):.2f}"


@dataclass(frozen=True)
class FittedLaw:
    """A law with its uncertainty, and what is needed to use it for other networks and optimizers."""

    logarithms: Sequence[float]
    covariance: Sequence[Sequence[float]]
    misfit: float
    """Standard deviation of its own runs around it, as a share of the loss."""
    largest_parameters: float
    largest_tokens: float
    adamw_tokens: float = 1.0
    """Tokens that AdamW at its best learning rate needs to the loss that the fast recipe has after one."""
    idle_share: float = 0.0
    """What a parameter of an expert that a token does not take counts, beside one that it meets."""

    @classmethod
    def load(cls, path: Path = FITTED) -> FittedLaw:
        """Read the fitted constants."""
        return cls(**read_object(path))

    @cached_property
    def law(self) -> Law:
        """The law itself."""
        return Law.of(self.logarithms)

    def expect(self, parameters: float, tokens: float) -> Expectation:
        """Return what to expect; the interval is that of the constants (by the delta method) and of single runs."""
        place = np.asarray(self.logarithms, dtype=float)

        def loss(constants: np.ndarray) -> float:
            return Law.of(constants.tolist())(parameters, tokens)

        steps = 1e-4 * np.eye(len(place))
        slope = np.array([(loss(place + step) - loss(place - step)) / 2e-4 for step in steps])
        expected = loss(place)
        variance = slope @ np.asarray(self.covariance) @ slope + (self.misfit * expected) ** 2
        return Expectation(expected, 1.96 * math.sqrt(variance))

    def size(self, model: ModelConfig) -> float:
        """Return the parameters that a network counts for: those a token meets, and a part of the idle experts'."""
        total, active = count_parameters(model)
        return active - model.vocab_size * model.hidden_size + self.idle_share * (total - active)

    def best_size(self, operations: float, text: float) -> tuple[float, float]:
        """Return the parameters and tokens with the lowest loss that so many operations can train, 6 N D of them.

        `text` are the tokens of the text, of which more than one pass is worth less.
        """
        sizes = _SIZES * MILLION
        losses = [self.law(size, worth(operations / (6 * size), text)) for size in sizes]
        best = float(sizes[int(np.argmin(losses))])
        return best, operations / (6 * best)


def worth(tokens: float, text: float) -> float:
    """Return how many new tokens are worth as much as `tokens` read from a text of `text` tokens, in several passes.

    A second to fourth pass is nearly as good as new text, later ones less and less (Muennighoff et al., 2023).
    """
    repeated = max(0.0, tokens - text) / text
    return min(tokens, text) + text * HALF_LIFE * -math.expm1(-repeated / HALF_LIFE)

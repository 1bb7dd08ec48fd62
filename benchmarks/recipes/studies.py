"""The studies: at each size of model a sweep of `sweep.py`'s own kind, by one process, with a fixed number of tokens.

Depth, heads and the experts' width grow with the hidden size as in the default model. A length is given in tokens a
parameter, embedding included, since that is what a fixed budget of compute fixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model import ModelConfig, count_parameters

MICRO_BATCH, SEQ_LEN = 16, 256
TOKENS_A_STEP = MICRO_BATCH * SEQ_LEN
LAYERS: Mapping[int, int] = {32: 2, 48: 2, 64: 3, 96: 3, 128: 4, 192: 5, 256: 6}


@dataclass(frozen=True)
class Size:
    """A dense model of a hidden size, or one with four experts of which each token takes two."""

    hidden: int
    experts: bool = False

    def fields(self) -> dict[str, int | bool]:
        """Return what makes the shape, by the names of train.py's flags."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": LAYERS[self.hidden],
            "num_attention_heads": max(1, self.hidden // 32),
            "num_key_value_heads": max(1, self.hidden // 64),
            "intermediate_size": self.hidden * 11 // 4,
            "moe_intermediate_size": self.hidden * 11 // 8,
            "use_moe": self.experts,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        }

    def parameters(self, vocabulary: int) -> int:
        """Return how many parameters a token meets, the tied embedding included."""
        return count_parameters(ModelConfig(vocab_size=vocabulary, **self.fields()))[1]

    def steps(self, vocabulary: int, tokens_a_parameter: float) -> int:
        """Return the optimizer steps that give each parameter so many tokens."""
        return max(1, round(tokens_a_parameter * self.parameters(vocabulary) / TOKENS_A_STEP))

    def flags(self) -> list[str]:
        """Return train.py's flags for the shape."""
        return [word for name, value in self.fields().items() for word in (f"--{name}", str(value).lower())]


@dataclass(frozen=True)
class Study:
    """Values to try, each combined with each, at some sizes and lengths.

    `values` are `sweep.py --set`'s: key=value,value. `tokens_a_parameter` are the lengths.
    """

    sizes: Sequence[Size]
    tokens_a_parameter: Sequence[float]
    values: Sequence[str] = ()
    seeds: Sequence[int] = (1,)


def _dense(*hidden: int) -> tuple[Size, ...]:
    return tuple(Size(width) for width in hidden)


# Muon's AdamW half keeps its ratio to Muon's learning rate, that of cpu_x2.json
STUDIES: Mapping[str, Study] = {
    "rates": Study(_dense(32, 64, 128), (10,), ("optimizer.params.muon_lr=0.005,0.01,0.02,0.04",), (1, 2)),
    "adam_rates": Study(_dense(32, 64), (10,), ("optimizer.params.adam_lr=0.0125,0.025,0.05,0.1",)),
    "law": Study(_dense(32, 48, 64), (2, 4, 8, 16)),
    # three times the compute of the largest run of the law, up to that length
    "validation": Study(_dense(96), (8, 16)),
    "equal": Study(_dense(32), (3,), seeds=range(1, 25)),
    "experts": Study(tuple(Size(width, experts=True) for width in (32, 64, 96)), (10, 40)),
}

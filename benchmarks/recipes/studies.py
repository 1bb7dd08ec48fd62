"""The studies: at each size of model a sweep of `sweep.py`'s own kind, by one process, with a fixed number of tokens.

Depth, heads and the experts' width grow with the hidden size as in the default model. A length is given in tokens a
parameter, embedding included, since that is what a fixed budget of compute fixes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model import ModelConfig, count_parameters

SEQ_LEN = 256
SHAPE = "bufudu."  # the block of the JSON that holds the model's shape
LAYERS: Mapping[int, int] = {32: 2, 48: 2, 64: 3, 96: 3, 128: 4, 192: 5, 256: 6, 512: 8}


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

    def parameters(self, vocabulary: int, changed: Sequence[str] = ()) -> int:
        """Return how many parameters a token meets, the tied embedding included.

        `changed` are values of `--set`, some of which may change the shape.
        """
        pairs = (change.split("=", 1) for change in changed if change.startswith(SHAPE))
        shape = self.fields() | {name.removeprefix(SHAPE): json.loads(value) for name, value in pairs}
        return count_parameters(ModelConfig(vocab_size=vocabulary, **shape))[1]

    def flags(self, study: Study) -> list[str]:
        """Return train.py's flags for the shape, without what the study sets itself."""
        tried = {value.split("=", 1)[0].removeprefix(SHAPE) for value in study.values}
        shape = {name: value for name, value in self.fields().items() if name not in tried}
        return [word for name, value in shape.items() for word in (f"--{name}", str(value).lower())]


@dataclass(frozen=True)
class Study:
    """Values to try, each combined with each, at some sizes and lengths.

    `values` are `sweep.py --set`'s: key=value,value. `tokens_a_parameter` are the lengths. `fixed` is what all runs of
    the study change in `config`, and `rows` is the batch. A run is evaluated so often, the last time at its end.
    """

    sizes: Sequence[Size]
    tokens_a_parameter: Sequence[float]
    values: Sequence[str] = ()
    seeds: Sequence[int] = (1,)
    config: str = "cpu_x2.json"
    fixed: Sequence[str] = ()
    rows: int = 16
    evaluations: int = 1

    def steps(self, size: Size, vocabulary: int, tokens_a_parameter: float) -> int:
        """Return the optimizer steps that give each parameter of a size so many tokens."""
        return max(1, round(tokens_a_parameter * size.parameters(vocabulary) / (self.rows * SEQ_LEN)))


def _dense(*hidden: int) -> tuple[Size, ...]:
    return tuple(Size(width) for width in hidden)


def _experts(*hidden: int) -> tuple[Size, ...]:
    return tuple(Size(width, experts=True) for width in hidden)


def _reference(
    sizes: Sequence[Size], tokens_a_parameter: float, rates: str, *, rows: int = 16, evaluations: int = 1
) -> Study:
    """Return a study of learning rates of the reference run's AdamW, with a batch and precision like the others'."""
    return Study(
        sizes,
        (tokens_a_parameter,),
        (f"optimizer.params.lr={rates}",),
        config="t4x2.json",
        fixed=(
            "fp16.enabled=false",
            "bf16.enabled=auto",
            "train_batch_size=auto",
            "gradient_accumulation_steps=1",
        ),
        rows=rows,
        evaluations=evaluations,
    )


def _scheduler(kind: str, **params: object) -> str:
    warm_up = {"warmup_num_steps": "auto", "warmup_type": "linear"}
    return "scheduler=" + json.dumps({"type": kind, "params": warm_up | params})


STUDIES: Mapping[str, Study] = {
    # beside 0.02 for Muon and 5e-2 for AdamW's half, as the file has them
    "rates": Study(_dense(32, 64, 128), (10,), ("optimizer.params.muon_lr=0.005,0.01,0.02,0.04",), (1, 2)),
    "wide_rates": Study(_dense(128), (2,), ("optimizer.params.muon_lr=0.01,0.04",)),
    "adam_rates": Study(_dense(32, 64), (10,), ("optimizer.params.adam_lr=0.0125,0.025",)),
    "wide_adam_rates": Study(_dense(128), (2,), ("optimizer.params.adam_lr=0.0125,0.025",)),
    "widest_adam_rates": Study(_dense(256), (0.2,), ("optimizer.params.adam_lr=0.0125,0.025,0.05",)),
    # the default model's width and depth
    "default_adam_rates": Study(_dense(512), (0.024,), ("optimizer.params.adam_lr=0.003,0.006,0.0125,0.05",), rows=4),
    # four times as many steps of two of its layers
    "default_width_adam_rates": Study(
        _dense(512),
        (0.096,),
        ("bufudu.num_hidden_layers=2", "optimizer.params.adam_lr=0.003,0.0125,0.05"),
        rows=4,
    ),
    "default_adamw": _reference(_dense(512), 0.024, "1e-3", rows=4),
    "long_rates": Study(_dense(32), (80,), ("optimizer.params.muon_lr=0.01,0.02,0.04",)),
    "long_adam_rates": Study(_dense(32, 64), (40, 80), ("optimizer.params.adam_lr=0.0125",)),
    # experts against dense at the rate that is best at that length
    "long_experts": Study((*_experts(64), *_dense(64)), (40,), ("optimizer.params.adam_lr=0.0125",)),
    # on a text of another kind
    "other_text": Study(
        _dense(64), (5,), ("optimizer.params.muon_lr=0.02,0.01,0.04",), fixed=("optimizer.params.adam_lr=0.05",)
    ),
    "adamw": _reference(_dense(32, 64), 10, "2e-4,1e-3,2e-3,4e-3,8e-3"),
    "wide_adamw": _reference(_dense(128), 2, "2e-3,4e-3,8e-3", evaluations=8),
    # the same length with Muon, as in "law", for its curve
    "wide_muon": Study(_dense(128), (2,), evaluations=8),
    # as many steps as at 128
    "widest_adamw": _reference(_dense(256), 0.5, "2e-3", evaluations=8),
    "widest_muon": Study(_dense(256), (0.5,), evaluations=8),
    "batch_4": Study(_dense(64), (10,), ("optimizer.params.muon_lr=0.01",), rows=4),
    "batch_64": Study(_dense(64), (10,), ("optimizer.params.muon_lr=0.02,0.04",), rows=64),
    "floors": Study(_dense(64), (10,), ("scheduler.params.cos_min_ratio=0.1",)),
    "decay": Study(_dense(64), (10,), ("optimizer.params.weight_decay=0.1",)),
    "linear": Study(
        _dense(64), (10,), fixed=(_scheduler("WarmupDecayLR", total_num_steps="auto", warmup_max_lr=[0.02, 5e-2]),)
    ),
    "constant": Study(_dense(64), (10,), fixed=(_scheduler("WarmupLR"),)),
    "betas": Study(_dense(64), (10,), ("optimizer.params.momentum=0.95",)),
    "law": Study(_dense(32, 48, 64, 96, 128), (2, 4, 8, 16)),
    # three times the compute of the largest run of the law, up to that length
    "validation": Study(_dense(96), (8, 16)),
    "equal": Study(_dense(32), (3,), seeds=range(1, 25)),
    "experts": Study(_experts(32, 64, 96), (10, 20, 40)),
    "dense": Study(_dense(32, 64, 96), (10, 20, 40, 80)),
    "balance": Study(_experts(64), (10,), ("bufudu.router_aux_loss_coef=0.01",)),
    # as wide together as the dense layer: 1/8 of it each, of which a token takes eight
    "many": Study(
        _experts(64),
        (10,),
        ("bufudu.num_experts=16", "bufudu.num_experts_per_tok=8", "bufudu.moe_intermediate_size=22"),
    ),
    # lengths of equal compute with 2,000, 4,000, 8,000 and 16,000 entries, each a corpus of its own
    "vocabulary": Study(_dense(128), (3.15, 2, 1.01, 0.4)),
    # texts of one source, each cleaned in another way
    "cleaning": Study(_dense(64), (10,)),
    "depth": Study(_dense(64), (10,), ("bufudu.num_hidden_layers=1,6",)),
    "heads": Study(_dense(64), (10,), ("bufudu.num_attention_heads=4",)),
    "initial": Study(_dense(64), (10,), ("bufudu.initializer_range=0.01,0.04",)),
    "rope": Study(_dense(64), (10,), ("bufudu.rope_theta=10000",)),
}

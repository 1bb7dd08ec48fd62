"""What is trained: a fault each, in three settings, and healthy runs; with the cause that must be named first.

Setting "a" is the one that the thresholds of diagnosis/rules/ were looked at with; "b" has other text, another seed,
size, batch and precision, and was judged afterwards. "muon" has the recipe of cpu_x2.json, with two learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parent / "adamw.json"
MUON = Path(__file__).resolve().parents[2] / "ds_configs" / "cpu_x2.json"
MUON_RATES = {"muon_lr": 0.02, "adam_lr": 5e-2}  # those of cpu_x2.json


@dataclass(frozen=True)
class Setting:
    """The healthy run that the faults are planted into."""

    corpus: str
    seed: int
    steps: int
    rates: Mapping[str, float]
    """Learning rates by their names in the optimizer's parameters."""
    flags: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    """Corpora that healthy runs take in this setting in the place of others."""
    recipe: Path = RECIPE


SETTINGS = {
    "a": Setting(
        "stories",
        1,
        300,
        {"lr": 3e-3},
        {
            "max_seq_len": 128,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "moe_intermediate_size": 96,
            "intermediate_size": 192,
        },
    ),
    "b": Setting(
        "docs",
        5,
        360,
        {"lr": 2e-3},
        {
            "max_seq_len": 96,
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "moe_intermediate_size": 64,
            "intermediate_size": 256,
            "num_experts": 6,
        },
        {"train_micro_batch_size_per_gpu": 12, "optimizer.params.betas": [0.9, 0.95]},
        {"stories": "village", "village": "stories"},
    ),
    "muon": Setting(
        "docs",
        21,
        300,
        MUON_RATES,
        {
            "max_seq_len": 128,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "moe_intermediate_size": 88,
            "intermediate_size": 176,
        },
        {"train_micro_batch_size_per_gpu": 8},
        recipe=MUON,
    ),
}


@dataclass(frozen=True)
class Case:
    """One training. `expected`: ids of causes of which the first one named must be; none for a healthy run.

    `rate` is a factor on the setting's learning rates, all or the one that `half` names; `form` is what is done to its
    corpus.
    """

    name: str
    expected: tuple[str, ...]
    plant: str = "none"
    rate: float = 1.0
    half: str = ""
    steps: int | None = None
    form: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    corpus: str = ""
    seed: int = 0  # added to the setting's
    recipe: Path | None = None
    """Another one than the setting's, with its own learning rates."""

    def corpus_name(self, setting: Setting) -> str:
        """The name that stress/faults/corpora.py knows it by."""
        return setting.instead.get(self.corpus, self.corpus or setting.corpus) + self.form

    def arguments(self, setting: Setting, corpus: Path, output: Path) -> list[str]:
        """The command line of train.py."""
        steps = self.steps or setting.steps
        flags = {
            "deepspeed_config": self.recipe or setting.recipe,
            "data": corpus,
            "output": output,
            "resume": "never",
            "max_steps": steps,
            "seed": setting.seed + self.seed,
            "log_interval": max(1, min(10, steps // 4)),
            "eval_interval": max(2, steps // 6),
            "eval_tokens": 12_000,
            "sample_interval": max(2, steps // 3),
            "save_interval": 10**6,
            "keep_last": 1,
            **setting.flags,
            **self.flags,
        }
        overrides = dict(self.overrides)
        if self.recipe in (None, setting.recipe):
            overrides = {**setting.overrides, **overrides}
            for name, rate in setting.rates.items():
                overrides[f"optimizer.params.{name}"] = rate * (self.rate if self.half in ("", name) else 1)
        return [
            part
            for name, value in flags.items()
            for part in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
        ] + ["--set", *(f"{key}={_written(value)}" for key, value in overrides.items())]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


ALL_BF16 = {"bf16.enabled": True, "bf16.bf16_master_weights_and_grads": True, "bf16.bf16_optimizer_states": True}
NO_CLIP = {"gradient_clipping": 0}
NO_WARMUP = {"scheduler.params.warmup_num_steps": 1}
DECAY = "optimizer.params.weight_decay"
DENSE, EXPERTS = {"use_moe": False}, {"use_moe": True}

FAULTS = (
    Case("low_precision", ("low_precision_weights",), rate=0.1, flags=DENSE, overrides=ALL_BF16),
    Case("shifted_by_two", ("targets_shifted",), "targets_shifted_by_two", flags=DENSE),
    Case("not_shifted", ("future_leak",), "targets_not_shifted", flags=DENSE),
    Case("padding", ("padding_in_loss",), "padding_counted", flags=DENSE),
    Case("rate_too_low", ("rate_too_low",), rate=0.01, flags=DENSE),
    Case("rate_too_high", ("rate_too_high", "diverged"), rate=100, flags=DENSE),
    Case("no_warmup", ("no_warmup",), rate=100, flags=DENSE, overrides=NO_WARMUP),
    Case("gradients_kept", ("gradients_kept",), "gradients_not_zeroed", flags=DENSE),
    Case("duplicates", ("duplicates",), form="_copied", flags=DENSE),
    Case("repetitive", ("repetitive_data",), form="_repeating", flags=DENSE),
    Case("router", ("router_collapsed",), "router_collapsed", flags=EXPERTS | {"router_aux_loss_coef": 0}),
    Case("few_steps", ("undertrained",), steps=16, flags=DENSE),
    Case("embedding", ("embedding_scale",), "embedding_scaled", flags=DENSE),
    Case("dropout", ("evaluation_differs",), "dropout_in_evaluation", flags=DENSE),
)

# With two optimizers each half can have a fault of its own.
MUON_FAULTS = (
    Case("muon_half_too_low", ("rate_too_low",), rate=0.01, half="muon_lr", flags=DENSE),
    Case("muon_half_too_high", ("rate_too_high", "diverged"), rate=100, half="muon_lr", flags=DENSE),
    Case("adam_half_too_low", ("rate_too_low",), rate=0.001, half="adam_lr", flags=DENSE),
    Case("adam_half_too_high", ("rate_too_high", "diverged"), rate=100, half="adam_lr", flags=DENSE),
    Case("decay_on_norms", ("norms_decayed",), "decay_on_norms", flags=DENSE, overrides={DECAY: 0.5}),
    Case("schedule_over", ("schedule_over",), flags=DENSE, overrides={"scheduler.params.total_num_steps": 60}),
)

SMALL = {
    "max_seq_len": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 96,
    "intermediate_size": 192,
}
WIDE = {**SMALL, "hidden_size": 128, "moe_intermediate_size": 176, "intermediate_size": 352}

HEALTHY = (
    Case("healthy_stories", (), flags=EXPERTS, steps=500, corpus="stories"),
    Case("healthy_dense", (), flags=WIDE | DENSE, seed=10, steps=400, corpus="village"),
    Case(
        "healthy_bf16",
        (),
        flags=SMALL | EXPERTS | {"num_experts": 8},
        seed=11,
        steps=300,
        corpus="stories",
        recipe=MUON,
        overrides={"train_micro_batch_size_per_gpu": 8, "bf16.enabled": True},
    ),
    Case(
        "healthy_docs",
        (),
        flags=WIDE | EXPERTS,
        seed=12,
        steps=500,
        corpus="docs",
        recipe=MUON,
        overrides={"train_micro_batch_size_per_gpu": 12, "bf16.enabled": False},
    ),
    Case(
        "healthy_poems",
        (),
        flags=WIDE | DENSE | {"hidden_size": 96},
        seed=13,
        steps=500,
        corpus="poems",
        recipe=MUON,
        overrides={"train_micro_batch_size_per_gpu": 8, "bf16.enabled": False},
    ),
)

# The recipe of cpu_x2.json over sizes, seeds, precisions and batches; and AdamW's beside it. On prose a model of this
# size is below the bigrams after a million tokens, and undertrained before.
MICRO = "train_micro_batch_size_per_gpu"
LONG = {MICRO: 16}
MUON_HEALTHY = (
    Case("healthy", (), flags=EXPERTS, steps=1000, overrides=LONG),
    Case("healthy_seed", (), flags=EXPERTS, seed=1, steps=800, overrides=LONG),
    Case("healthy_dense", (), flags=DENSE, seed=2, steps=1000, overrides=LONG),
    Case("healthy_long", (), flags=DENSE, seed=3, steps=2000, overrides=LONG),
    Case("healthy_fp32", (), flags=EXPERTS, seed=4, steps=800, overrides=LONG | {"bf16.enabled": False}),
    Case("healthy_wide", (), flags=WIDE | EXPERTS, seed=5, steps=700, overrides=LONG),
    Case(
        "healthy_top1",
        (),
        flags=EXPERTS | {"num_experts": 8, "num_experts_per_tok": 1},
        seed=6,
        steps=1000,
        overrides=LONG,
    ),
    Case("healthy_small_batch", (), flags=EXPERTS, seed=7, steps=1500),
    Case("healthy_half_rate", (), flags=DENSE, seed=8, rate=0.5, steps=1000, overrides=LONG),
    Case("healthy_decay", (), flags=DENSE, seed=9, steps=1000, overrides=LONG | {DECAY: 0.05}),
    Case("healthy_poems", (), flags=EXPERTS, seed=10, steps=800, corpus="poems"),
    Case("healthy_stories", (), flags=DENSE, seed=11, corpus="stories"),
    Case(
        "healthy_adamw",
        (),
        flags=EXPERTS,
        seed=12,
        steps=2500,
        recipe=RECIPE,
        overrides=LONG | {"optimizer.params.lr": 5e-3},
    ),
)

CASES = {"a": (*FAULTS, *HEALTHY), "b": (*FAULTS, *HEALTHY), "muon": (*FAULTS, *MUON_FAULTS, *MUON_HEALTHY)}
"""By setting: what is trained in it."""

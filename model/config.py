"""The sizes of the network, and their translation to and from the Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.files import json_fault, printable, read_json

_MOST_BYTES = 2**20  # of a config.json
_LIMIT = 2**31  # of any size: the products of two still fit what PyTorch counts in
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "ep_size",
    "max_position_embeddings",
)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_POSITIVE = ("rope_theta", "rms_norm_eps", "initializer_range")
_EXPERTS_ONLY = ("moe_intermediate_size", "num_experts", "num_experts_per_tok")


class ModelConfigError(ValueError):
    """A network that cannot be built; the message lists every problem."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the network; the defaults are the reference run's (45 M parameters).

    `head_dim=None` means hidden_size / num_attention_heads. `intermediate_size` is the width of the dense
    feed-forward layer (`use_moe=False`), `moe_intermediate_size` that of one expert. `capacity_factor=0` routes
    without dropping a token; a positive value caps an expert at that multiple of its even share while training.
    """

    vocab_size: int = 6400
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 1408
    use_moe: bool = True
    moe_intermediate_size: int = 704
    num_experts: int = 4
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.01
    capacity_factor: float = 0.0
    ep_size: int = 1
    max_position_embeddings: int = 2048
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    mask_documents: bool = True
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def validate(self) -> None:
        """Raise ModelConfigError with every size that does not fit the others."""
        problems = list(self._problems())
        if problems:
            raise ModelConfigError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.vocab_size > 65536:
            yield f"vocab_size {self.vocab_size} is over 65,536: token ids are stored in 16 bits"
        sizes = _SIZES if self.head_dim is None else (*_SIZES, "head_dim")
        bad = [name for name in sizes if not 1 <= getattr(self, name) < _LIMIT]
        yield from (f"{name} is {getattr(self, name)}: give a number of at least 1 and below 2^31" for name in bad)
        if bad:
            return
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            yield (
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}: "
                "change one, or give --head_dim"
            )
        if self.head_size % 2:
            yield f"a head is {self.head_size} wide, and rotary positions need an even width"
        if self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.use_moe and self.num_experts_per_tok > self.num_experts:
            yield (f"num_experts_per_tok {self.num_experts_per_tok} is more than num_experts {self.num_experts}")
        if self.use_moe and self.num_experts % self.ep_size:
            yield f"num_experts {self.num_experts} is no multiple of ep_size {self.ep_size}"
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < _LIMIT:
                yield f"{name} is {getattr(self, name):g}: give a number above 0 and below 2^31"
        if not 0 <= self.router_aux_loss_coef < _LIMIT:
            yield f"router_aux_loss_coef is {self.router_aux_loss_coef:g}: give 0 or a small positive number"
        if not 0 <= self.capacity_factor < _LIMIT:
            yield f"capacity_factor is {self.capacity_factor:g}: give 0 (no token dropped) or a factor such as 1.25"
        for name in _IDS:
            if not 0 <= getattr(self, name) < self.vocab_size:
                yield f"{name} is {getattr(self, name)}, which the vocabulary does not have"

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """Return the `config.json` of the same network as Qwen3-MoE (or Qwen3 when dense) in transformers.

        `bufudu` keeps what the standard file has no name for, so that `from_hf` gives the same object back.
        """
        shared = {name: getattr(self, name) for name in (*_SIZES, *_IDS, *_POSITIVE) if name != "ep_size"} | {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "head_dim": self.head_size,
            "torch_dtype": dtype,
            "use_cache": True,
            "use_sliding_window": False,
            "bufudu": asdict(self),
        }
        if not self.use_moe:
            dense = {name: value for name, value in shared.items() if name not in _EXPERTS_ONLY}
            return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **dense}
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **shared,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": self.router_aux_loss_coef,
            "output_router_logits": False,
            # DeepSpeed weighs a single expert with its raw probability and renormalises two or more
            "norm_topk_prob": self.num_experts_per_tok > 1,
        }

    @classmethod
    def from_hf(cls, path: Path) -> ModelConfig:
        """Read a `config.json` that `to_hf` wrote. Raise ModelConfigError for a file of another origin.

        transformers carries the `bufudu` block along unseen, so a vocabulary that it has enlarged wins over it.
        """
        try:
            found = read_json(path, _MOST_BYTES)
            config = TypeAdapter(cls).validate_json(json.dumps(found["bufudu"]), strict=True)
        except json.JSONDecodeError as error:
            raise ModelConfigError(
                f"{path} is damaged: no valid JSON ({json_fault(error)}, line {error.lineno}); restore it "
                "from a copy, or give another run"
            ) from error
        except ValidationError as error:
            wrong = ".".join(["bufudu", *map(str, error.errors()[0]["loc"])])
            raise ModelConfigError(
                f"{path} was not written by this project ({wrong} has no usable value): restore it from a copy, "
                "or give another run"
            ) from error
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ModelConfigError(
                f"{path} was not written by this project (no usable 'bufudu' block): give the folder of a run; "
                "train.py --init_from begins one with a Qwen3(-MoE) model"
            ) from error
        try:
            config.validate()
            if type(found.get("vocab_size")) is int:
                config = replace(config, vocab_size=found["vocab_size"])
                config.validate()
            kind, ours = found.get("model_type"), "qwen3_moe" if config.use_moe else "qwen3"
            if kind != ours:
                other = "it names another network than its 'bufudu' block: model_type is"
                raise ModelConfigError(f"{other} {printable(repr(kind), 40)} instead of {ours}; restore it from a copy")
        except ModelConfigError as error:
            raise ModelConfigError(f"{path}: {error}") from None
        return config

    def for_inference(self) -> ModelConfig:
        """Return the same network on one process with no token dropped, as it is generated from and exported."""
        return replace(self, ep_size=1, capacity_factor=0.0)

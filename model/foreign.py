"""Qwen3 and Qwen3-MoE folders of another origin, as far as our network computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.files import printable, read_json
from model.config import ModelConfig, ModelConfigError

_MOST_BYTES = 2**20
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
)
_MOE_SIZES = ("moe_intermediate_size", "num_experts", "num_experts_per_tok", "router_aux_loss_coef")
_OUTPUT = "lm_head.weight"
_INSTEAD = "give the folder of a run, or of another model"


def read_qwen3(path: Path) -> ModelConfig:
    """Return the network that a `config.json` describes; ModelConfigError if it is none that ours computes alike."""
    try:
        content = read_json(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{path} cannot be read ({printable(error)}); give the folder of a model") from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in ("qwen3", "qwen3_moe"):
        what = f"is a {printable(repr(kind), 40)}" if kind else "names no model_type"
        raise ModelConfigError(f"{path}: {what}, and only Qwen3(-MoE) can be trained here; {_INSTEAD}")
    if problems := list(_problems(content)):
        raise ModelConfigError(f"{path}: {'; '.join([*problems, _INSTEAD])}")
    use_moe = kind == "qwen3_moe"
    names = (*_SIZES, *(_MOE_SIZES if use_moe else ("intermediate_size",)))
    values = {name: content[name] for name in names if content.get(name) is not None}
    try:
        config = ModelConfig(use_moe=use_moe, rope_theta=float(_rope(content)["rope_theta"]), **values)
        config.validate()
    except (ModelConfigError, TypeError, ValueError, KeyError) as error:
        raise ModelConfigError(
            f"{path}: describes no network that can be built ({printable(error)}); {_INSTEAD}"
        ) from None
    return config


def _rope(content: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary positions' settings, which stand in a block of their own since transformers 5."""
    block = content.get("rope_parameters")
    return block if isinstance(block, dict) else {"rope_theta": content.get("rope_theta", 10_000.0)}


def _problems(content: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each setting by which it computes what our network does not."""
    experts = content.get("num_experts_per_tok", 8)
    ours = {
        "tie_word_embeddings": (False, True),
        "attention_bias": (False, False),
        "hidden_act": ("silu", "silu"),
        "use_sliding_window": (False, False),
        "rope_scaling": (None, None),
    }
    if content["model_type"] == "qwen3_moe":
        one = isinstance(experts, int) and experts <= 1
        ours |= {"decoder_sparse_step": (1, 1), "mlp_only_layers": ([], []), "norm_topk_prob": (False, not one)}
    for name, (default, needed) in ours.items():
        if (found := content.get(name, default)) != needed and not (name == "mlp_only_layers" and found is None):
            yield f"{name} is {printable(repr(found), 40)}, and only {needed!r} can be trained here"
    if _rope(content).get("rope_type", "default") != "default":
        yield "its rotary positions are scaled, and only plain ones can be trained here"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder by name; ModelConfigError if there are none or a file is broken."""
    weights: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelConfigError(f"{folder}: its weights cannot be read ({printable(error)}); copy them again") from None
    if not weights:
        raise ModelConfigError(f"{folder} has no .safetensors file: give the folder of a model")
    weights.pop(_OUTPUT, None)  # tied to the embedding, as its configuration says
    return weights

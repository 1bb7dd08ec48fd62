"""Parameter names: ours while training (DeepSpeed nests its experts) and Hugging Face's on disk and in generation."""

from __future__ import annotations

import re

from torch import nn

from model.moe import DeepSpeedMoE

_DEEPSPEED_GATE = re.compile(r"(.*\.mlp)\.moe\.deepspeed_moe\.gate\.wg\.weight$")
_DEEPSPEED_EXPERT = re.compile(r"(.*\.mlp)\.moe\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(.*)$")


def hf_name(name: str, model: nn.Module) -> str:
    """The Hugging Face name of a parameter of `model`, a local expert under its global number."""
    if match := _DEEPSPEED_GATE.match(name):
        return f"{match[1]}.gate.weight"
    if match := _DEEPSPEED_EXPERT.match(name):
        layer = model.get_submodule(match[1])
        if not isinstance(layer, DeepSpeedMoE):
            raise TypeError(f"{match[1]} holds DeepSpeed experts but is a {type(layer).__name__}")
        return f"{match[1]}.experts.{layer.first_expert + int(match[2])}.{match[3]}"
    return name


def is_expert(name: str) -> bool:
    """True for a parameter (by its Hugging Face name) that belongs to one expert."""
    return ".mlp.experts." in name

"""The weights of a model as the tensors of a GGUF file, under llama.cpp's names and in the type that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from exporting.libraries import library
from exporting.quantization import BLOCK, is_blocked
from model import ModelConfig

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+_proj)\.weight$")
_ROUTER = re.compile(r"\.mlp\.gate\.weight$")


@dataclass(frozen=True)
class GGUFTensor:
    """`data` as it is stored, in the library's type `kind`."""

    name: str
    data: np.ndarray
    kind: Any


def architecture(config: ModelConfig) -> str:
    """Return the architecture of llama.cpp that computes what the model computes.

    Its "qwen3moe" always renormalises the weights of the chosen experts, which turns that of a single one into 1.
    "glm4moe" is the same network with a switch for it, a bias of the choice and a shared expert: with the switch off
    and both of these zero it is exactly Qwen3-MoE with one expert a token.
    """
    if not config.use_moe:
        return "qwen3"
    return "qwen3moe" if config.num_experts_per_tok > 1 else "glm4moe"


def gguf_tensors(config: ModelConfig, weights: Mapping[str, Tensor], kind: str) -> list[GGUFTensor]:
    """Return all tensors; vectors and routers stay in fp32, as llama.cpp has them.

    UserError if a weight is not finite, or too large for fp16.
    """
    gguf = library("gguf", "a GGUF file")
    names = _library_names(gguf, config)
    return [
        _stored(gguf, names(name), name, tensor.float().numpy(), kind)
        for name, tensor in (*_merged(weights), *_of_a_single_expert(config))
    ]


def _library_names(gguf: Any, config: ModelConfig) -> Any:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture(config))
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def translate(name: str) -> str:
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"llama.cpp's {architecture(config)} has no tensor for {name}: take another gguf release")
        return found

    return translate


def _merged(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights, the experts of a layer as one tensor (E, out, in)."""
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _EXPERT.match(name):
            experts.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = tensor
        else:
            yield name, tensor
    for name, parts in experts.items():
        yield name, torch.stack([parts[expert] for expert in range(len(parts))])


def _of_a_single_expert(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield what "glm4moe" wants besides: no bias of the choice, and a shared expert that adds nothing."""
    if architecture(config) != "glm4moe":
        return
    hidden, width = config.hidden_size, config.moe_intermediate_size
    for layer in range(config.num_hidden_layers):
        mlp = f"model.layers.{layer}.mlp"
        yield f"{mlp}.gate.e_score_correction.bias", torch.zeros(config.num_experts)
        for part, shape in {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}.items():
            yield f"{mlp}.shared_experts.{part}_proj.weight", torch.zeros(shape)


def _stored(gguf: Any, gguf_name: str, name: str, data: np.ndarray, kind: str) -> GGUFTensor:
    types = gguf.GGMLQuantizationType
    stored = types[kind.upper()]
    if data.ndim == 1 or _ROUTER.search(name):
        stored = types.F32
    elif is_blocked(kind) and data.shape[-1] % BLOCK:
        stored = types.F16
    largest = np.abs(data).max(initial=0)
    if not np.isfinite(largest):
        raise UserError(f"{name} has weights that are not finite: take an earlier checkpoint of the run")
    if stored == types.F16 and largest > np.finfo(np.float16).max:
        raise UserError(f"{name} has weights beyond the range of fp16: take --type bf16 or f32")
    return GGUFTensor(gguf_name, gguf.quants.quantize(data, stored), stored)

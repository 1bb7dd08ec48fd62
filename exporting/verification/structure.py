"""What a folder or a GGUF file says of its network and holds as weights, beside the trained model, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import printable
from exporting.gguf_file import sizes
from exporting.gguf_tensors import architecture, gguf_tensors
from exporting.libraries import library
from model import ModelConfig, ModelConfigError
from model.foreign import read_weights

# The relative error of a matrix that its type explains: root mean square of the difference over that of the weights.
ROUNDING = {
    "F32": 1e-6,
    "F16": 1e-3,
    "BF16": 5e-3,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    "Q5_0": 0.06,
    "Q5_1": 0.06,
    "Q5_K": 0.06,
}
COARSEST = 0.2  # of four bits and fewer
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NAMED = 3  # faults of a kind that are listed one by one


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder's safetensors files, empty if it has none that can be read."""
    try:
        return read_weights(folder)
    except ModelConfigError:
        return {}  # transformers has its own ways to find weights; the logits tell


def stored_type(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return the coarsest type by which a folder's weights were rounded, such as "f16"; "f32" if they were not."""
    rounded = [name for name, tensor in weights.items() if name in stored and not tensor.equal(stored[name].float())]
    kinds = {_TYPES[stored[name].dtype] for name in rounded if stored[name].dtype in _TYPES}
    return max(kinds, key=lambda kind: ROUNDING[kind], default="F32").lower()


def folder_faults(
    model: Any,
    missing: Sequence[str],
    stored: Mapping[str, Tensor],
    config: ModelConfig,
    weights: Mapping[str, Tensor],
) -> list[str]:
    """Return what transformers made of a folder that the trained model is not.

    `missing` names the weights that it did not find, and `stored` is what the folder holds.
    """
    expected = "qwen3_moe" if config.use_moe else "qwen3"
    if model.config.model_type != expected:
        return [f"its architecture is {printable(model.config.model_type, 40)} instead of {expected}"]
    return [
        *_config_faults(model, config),
        *_listed("no tensor", missing),
        *_folder_weight_faults(model, stored, weights),
    ]


def _config_faults(model: Any, config: ModelConfig) -> Iterator[str]:
    theirs = model.config
    for name in ("hidden_size", "num_hidden_layers", *(("num_experts",) if config.use_moe else ())):
        if getattr(theirs, name) != getattr(config, name):
            yield f"{name} is {getattr(theirs, name)} instead of {getattr(config, name)}"
    frequency = model.model.rotary_emb.inv_freq[1].item()  # base ** (-2 / width of a head)
    base = frequency ** (-config.head_size / 2)
    if not math.isclose(base, config.rope_theta, rel_tol=1e-3):
        yield f"wrong rope base: {base:.6g} instead of {config.rope_theta:.6g}"
    if not math.isclose(theirs.rms_norm_eps, config.rms_norm_eps, rel_tol=1e-3):
        yield f"rms_norm_eps is {theirs.rms_norm_eps:g} instead of {config.rms_norm_eps:g}"
    if not config.use_moe:
        return
    if theirs.num_experts_per_tok != config.num_experts_per_tok:
        yield f"{theirs.num_experts_per_tok} experts a token instead of {config.num_experts_per_tok}"
    if bool(theirs.norm_topk_prob) != (config.num_experts_per_tok > 1):
        done = "renormalised" if theirs.norm_topk_prob else "not renormalised"
        yield f"routing {done}: norm_topk_prob is {str(bool(theirs.norm_topk_prob)).lower()}"


def _folder_weight_faults(model: Any, stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[str]:
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if head is not embedding and not head.equal(embedding):
        yield "tied weights lost: the output matrix is not the embedding"
    wrong = [
        name
        for name, tensor in weights.items()
        if name in stored
        and _is_other(stored[name].float().numpy(), tensor.numpy(), _TYPES.get(stored[name].dtype, ""))
    ]
    yield from _listed("other weights", wrong)


def file_type(gguf: Any, file: Any) -> str:
    """Return the type of a GGUF file's matrices, such as "q8_0"."""
    sizes: dict[str, int] = {}
    for tensor in file.tensors:
        if len(tensor.shape) > 1:
            kind = gguf.GGMLQuantizationType(tensor.tensor_type).name
            sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    return max(sizes, key=lambda kind: sizes[kind], default="unknown").lower()


def file_faults(file: Any, config: ModelConfig, weights: Mapping[str, Tensor]) -> list[str]:
    """Return what a GGUF file says or holds that the trained model is not."""
    gguf = library("gguf", "a GGUF file")
    arch = _value(file, "general.architecture")
    faults = list(_size_faults(gguf, file, arch, config))
    if arch == architecture(config):
        faults += _tensor_faults(gguf, file, config, weights)
    return faults


def _size_faults(gguf: Any, file: Any, arch: Any, config: ModelConfig) -> Iterator[str]:
    if arch == "qwen3moe" and config.use_moe and config.num_experts_per_tok == 1:
        yield "routing renormalised: qwen3moe weighs the one expert of a token with 1 instead of its probability"
    elif arch != architecture(config):
        yield f"its architecture is {arch} instead of {architecture(config)}"
    for key, value in sizes(gguf, config).items():
        found = _value(file, f"{arch}.{key}")
        if isinstance(found, (str, list)):  # a number a layer, as other architectures have
            yield f"{key} is {printable(found, 40)} instead of {value:g}"
        elif found is not None and not math.isclose(found, value, rel_tol=1e-5):
            yield _words(key, found, value)


def _words(key: str, found: Any, value: Any) -> str:
    if key == "rope.freq_base":
        return f"wrong rope base: {found:.6g} instead of {value:.6g}"
    if key == "expert_weights_norm":
        return "routing renormalised: expert_weights_norm is true"
    return f"{key} is {found:g} instead of {value:g}"


def _value(file: Any, key: str) -> Any:
    field = file.get_field(key)
    return field.contents() if field is not None else None


def _tensor_faults(gguf: Any, file: Any, config: ModelConfig, weights: Mapping[str, Tensor]) -> Iterator[str]:
    found = {tensor.name: tensor for tensor in file.tensors}
    expected = {tensor.name: tensor.data for tensor in gguf_tensors(config, weights, "f32")}

    def is_other(tensor: Any, data: np.ndarray) -> bool:
        kind = gguf.GGMLQuantizationType(tensor.tensor_type).name
        return _is_other(gguf.quants.dequantize(tensor.data, tensor.tensor_type), data, kind)

    head = found.pop("output.weight", None)
    if head is not None and is_other(head, expected["token_embd.weight"]):
        yield "tied weights lost: the output matrix is not the embedding"
    yield from _listed("no tensor", [name for name in expected if name not in found])
    wrong = [name for name, data in expected.items() if name in found and is_other(found[name], data)]
    yield from _listed("other weights", wrong)


def _is_other(data: np.ndarray, expected: np.ndarray, kind: str) -> bool:
    """Return whether a tensor has another shape, or differs by more than its type explains."""
    if data.shape != expected.shape:
        return True
    size = float(np.square(expected, dtype=np.float64).mean()) ** 0.5
    difference = float(np.square(data - expected, dtype=np.float64).mean()) ** 0.5
    return not difference <= size * ROUNDING.get(kind, COARSEST)  # NaN is other weights too


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    yield from (f"{what}: {name}" for name in names[:NAMED])
    if len(names) > NAMED:
        yield f"{what}: {len(names) - NAMED:,} more tensors"

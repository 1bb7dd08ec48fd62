"""Hugging Face in and out: model folders in its layout (`config.json`, `model.safetensors`), and parameter names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
from common.files import LFS_HINT, is_lfs_pointer, read_json, replace_files
from common.uncompiled import on_meta_device
from model.config import ModelConfig, ModelConfigError
from model.moe import DeepSpeedMoE
from model.transformer import CausalLM

_DEEPSPEED_GATE = re.compile(r"(.*\.mlp)\.moe\.deepspeed_moe\.gate\.wg\.weight$")
_DEEPSPEED_EXPERT = re.compile(r"(.*\.mlp)\.moe\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(.*)$")
_INDEX = "model.safetensors.index.json"
_MOST_BYTES = 2**24  # of an index: a line a tensor
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What weights can be stored in."""
GENERATION_CONFIG = "generation_config.json"


def save_model(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write `weights` (Hugging Face names, all experts) so that transformers loads them as Qwen3-MoE or Qwen3.

    OSError (a full disk) leaves what was there before, and nothing half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace_files(
        {
            folder / "config.json": lambda path: _write_json(path, config.for_inference().to_hf(dtype)),
            folder / GENERATION_CONFIG: lambda path: _write_json(path, generation_config(config)),
            folder / "model.safetensors": lambda path: _save_tensors(tensors, path),
        }
    )


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """Return the `generation_config.json`: where a text begins and ends. Sampling is left to who generates."""
    return {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else None, str(error), str(path)) from None


def load_model(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """Read a folder that `save_model` wrote, or transformers from one of those, in evaluation mode.

    `dtype=None` keeps the stored precision. Raises ModelConfigError with one sentence if a file is missing, broken,
    or does not fit the configuration.
    """
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    if not weights_file.is_file() and (folder / _INDEX).is_file():
        weights_file = folder / _INDEX  # several files, which it lists
    for path in (config_file, weights_file):
        if not path.is_file():
            raise ModelConfigError(f"{path} is missing: {_instead(folder)}")
    config = ModelConfig.from_hf(config_file)
    try:
        files = _files(weights_file)
        if pointers := [path for path in files if is_lfs_pointer(path)]:
            raise UserError(f"{pointers[0]}: {LFS_HINT}")
        weights = _read_tensors(files, config)
        with on_meta_device():
            model = CausalLM(config)
        model.load_state_dict(weights, strict=True, assign=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, MemoryError) as error:
        raise ModelConfigError(
            f"{weights_file} does not hold the weights that {config_file} describes: "
            f"{' '.join(str(error).split())[:300]}; restore it from a copy"
        ) from error
    return model.to(device=device, dtype=dtype).eval()


def _instead(folder: Path) -> str:
    """Return what to do about a folder without model.safetensors, by what else is there."""
    if next(folder.glob("pytorch_model*.bin"), None):
        return (
            "pytorch_model.bin is never read, since it may hold code; convert it with from_pretrained and "
            "save_pretrained of transformers"
        )
    return "give the folder of a run or of a saved model"


def _files(path: Path) -> list[Path]:
    """Return the files that hold the weights: the one given, or those that it lists. ValueError if it lists others."""
    if path.name != _INDEX:
        return [path]
    listed = read_json(path, _MOST_BYTES)
    names = sorted(set(listed["weight_map"].values())) if isinstance(listed, dict) and "weight_map" in listed else []
    if not names or not all(re.fullmatch(r"[\w-]+\.safetensors", str(name)) for name in names):
        raise ValueError("it lists no safetensors files")
    return [path.with_name(name) for name in names]


def _read_tensors(paths: list[Path], config: ModelConfig) -> dict[str, Tensor]:
    """ValueError if there are too few for the configuration, which could ask for modules without end, or they are
    no weights.
    """
    weights = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    least = config.num_hidden_layers * (config.num_experts if config.use_moe else 1)
    if len(weights) < least:
        raise ValueError(f"{len(weights):,} tensors for {least:,} layers or experts")
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name[:100]} is {str(tensor.dtype).removeprefix('torch.')}")
    return weights


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

"""A model folder in the standard Hugging Face layout: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig, ModelConfigError
from model.network import CausalLM


def save_model(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write `weights` (Hugging Face names, all experts) so that transformers loads them as Qwen3-MoE or Qwen3."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    text = json.dumps(config.for_inference().to_hf(dtype), indent=2, ensure_ascii=False) + "\n"
    _replace(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    _replace(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def _replace(path: Path, write) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    beside = path.with_name(path.name + ".new")
    write(beside)
    os.replace(beside, path)


def load_model(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """Read a folder that `save_model` wrote, in evaluation mode.

    `dtype=None` keeps the stored precision. Raises ModelConfigError with one sentence if a file is missing, broken,
    or does not fit the configuration.
    """
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for path in (config_file, weights_file):
        if not path.is_file():
            raise ModelConfigError(f"{path} is missing: give the folder of a run or of a saved model")
    config = ModelConfig.from_hf(config_file)
    with torch.device("meta"):
        model = CausalLM(config)
    try:
        weights = load_file(weights_file)
        model.load_state_dict(weights, strict=True, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelConfigError(f"{weights_file} does not hold the weights that {config_file} describes: "
                               f"{' '.join(str(error).split())[:300]}") from error
    return model.to(device=device, dtype=dtype).eval()

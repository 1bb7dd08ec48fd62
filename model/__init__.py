"""The network and its generation: no training code, and no torch.distributed needed.

What is imported from here is loaded when it is asked for, so that the sizes of a network do not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig, ModelConfigError

if TYPE_CHECKING:
    from model.hf import load_model, save_model
    from model.inference.generate import GenerationError, generate
    from model.inference.text import TextStream, pad_left, until_eos
    from model.transformer import CausalLM, count_parameters

__all__ = [
    "CausalLM",
    "GenerationError",
    "ModelConfig",
    "ModelConfigError",
    "TextStream",
    "count_parameters",
    "generate",
    "load_model",
    "pad_left",
    "save_model",
    "until_eos",
]
_MODULES = {
    "model.hf": ("load_model", "save_model"),
    "model.inference.generate": ("GenerationError", "generate"),
    "model.inference.text": ("TextStream", "pad_left", "until_eos"),
    "model.transformer": ("CausalLM", "count_parameters"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The network and its generation: no training code, and no torch.distributed needed."""

from model.config import ModelConfig, ModelConfigError
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

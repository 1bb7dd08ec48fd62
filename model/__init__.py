"""The network and its generation: no training code, and no torch.distributed needed."""

from model.config import ModelConfig, ModelConfigError
from model.network import CausalLM, count_parameters
from model.saving import load_model, save_model

__all__ = ["CausalLM", "ModelConfig", "ModelConfigError", "count_parameters", "load_model", "save_model"]

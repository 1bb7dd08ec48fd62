"""All initialisation, in one place."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from model.config import ModelConfig
from model.hf import hf_name


def init_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter; the loss at step 0 is then ln(vocabulary) within 0.15.

    | parameter                              | values                                                          |
    |----------------------------------------|-----------------------------------------------------------------|
    | embed_tokens (tied with the output)    | normal, std min(initializer_range, 4 / hidden_size)             |
    | q, k, v, gate_proj, up_proj, router    | normal, std initializer_range                                   |
    | o_proj, down_proj (into the residual)  | normal, std initializer_range / sqrt(2 num_hidden_layers)       |
    | norms                                  | ones                                                            |

    The embedding's limit is there because it is tied: a token's logit for itself is about hidden_size times the
    std, and a wide model that started at 0.02 would begin as a parrot of its last token. The residual scale is
    GPT-2's. Every parameter is drawn from a generator seeded by its global name, so the weights depend neither on the
    number of ranks nor on which rank holds an expert, and experts differ from each other.
    """
    for name, parameter in model.named_parameters():
        _fill(parameter, hf_name(name, model), config, seed)


@torch.no_grad()
def _fill(parameter: nn.Parameter, name: str, config: ModelConfig, seed: int) -> None:
    if parameter.ndim == 1:
        parameter.fill_(1.0)
        return
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, _std(name, config), generator=generator)
    parameter.copy_(values)


def _std(name: str, config: ModelConfig) -> float:
    if name.endswith("embed_tokens.weight"):
        return min(config.initializer_range, 4.0 / config.hidden_size)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
    return config.initializer_range

"""Keys and values of the tokens already read, so that each new token costs one step and not a whole pass."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Space for `capacity` tokens of `batch` sequences, allocated once."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_size)
        self.layers = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values of one layer; return all of that layer, (B, K, S, D)."""
        end = self.length + k_BKTD.shape[2]
        self.check_capacity(end)
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = k_BKTD
        values[:, :, self.length : end] = v_BKTD
        return keys[:, :, :end], values[:, :, :end]

    def check_capacity(self, tokens: int) -> None:
        """Raise IndexError if the cache cannot hold so many tokens."""
        if tokens > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} tokens, and {tokens} were asked for")

    def advance(self, tokens: int) -> None:
        """Count the tokens of a pass, once its last layer has stored their keys and values."""
        self.length += tokens

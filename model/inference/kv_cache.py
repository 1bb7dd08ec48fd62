"""Keys and values of the tokens already read, so that each new token costs one step and not a whole pass."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Room for `capacity` tokens of `batch` sequences, allocated once."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_size)
        self.both = torch.empty(shape, device=device, dtype=dtype)  # one tensor, so that a step writes both at once
        self.keys, self.values = self.both.unbind(1)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values of one layer; returns all of that layer, (B, K, S, D)."""
        end = self.length + k_BKTD.shape[2]
        self.check_room(end)
        self.keys[layer, :, :, self.length : end] = k_BKTD
        self.values[layer, :, :, self.length : end] = v_BKTD
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def check_room(self, end: int) -> None:
        """IndexError if `end` tokens do not fit."""
        if end > self.capacity:
            raise IndexError(f"the cache holds {self.capacity} tokens, and {end} were asked for")

    def advance(self, tokens: int) -> None:
        """Called once a pass, after the last layer has stored its part."""
        self.length += tokens

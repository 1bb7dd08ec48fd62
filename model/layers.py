"""The layers that a block is made of: RMSNorm, rotary positions (RoPE) and SwiGLU.

Shapes in names: B batch, T tokens, H hidden, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.kernels import Kernels


class RMSNorm(nn.Module):
    """RMSNorm, with the addition to the residual stream that comes before it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.kernels = Kernels()

    def forward(self, x: Tensor, update: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(..., width): return x + update and its norm, in the dtype of x."""
        return self.kernels.add_norm(x, update, self.weight, self.eps)


def rotary(position_BT: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of shape (B, 1, T, width) for RoPE (Su et al. 2021), halves rotated as in Hugging Face.

    The left half of the sines is negative: x cos + (right, left) sin is the rotation.

    Computed anew in fp32 rather than kept in a buffer, which `module.half()` would round to 11 bits.
    """
    exponent = torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32) / width
    angle = position_BT[:, None, :, None].float() * theta**-exponent
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), Shazeer 2020; the dense layer and each single expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)
        self.kernels = Kernels()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., H) -> (..., H)."""
        return self.kernels.feed_forward(x, [len(x)], [self])


class DenseMLP(SwiGLU):
    """The feed-forward layer of a model without experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.intermediate_size)

"""The layers that a block is made of: RMSNorm, rotary positions (RoPE) and SwiGLU.

Shapes in names: B batch, T tokens, H hidden, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number a row; autograd keeps two fp32 copies and passes over memory more often."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return a tensor like x."""
        normed, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and of the weight."""
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad_weight_rows = (normed * grad).flatten(0, -2)
        along = (grad_weight_rows @ weight.float()).div_(x.shape[-1]).view_as(scale)
        grad_x = normed.mul_(-along).addcmul_(grad.float(), weight.float()).mul_(scale)
        return grad_x.to(x.dtype), grad_weight_rows.sum(0).to(weight.dtype), None


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the normalised x and the scale of each row."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype), scale


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019; the mean square is taken in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), in the dtype of x."""
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return _rms_norm(x, self.weight, self.eps)[0]


def rotary(position_BT: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of shape (B, 1, T, width) for RoPE (Su et al. 2021), halves rotated as in Hugging Face.

    The left half of the sines is negative: x cos + (right, left) sin is the rotation.

    Computed anew in fp32 rather than kept in a buffer, which `module.half()` would round to 11 bits.
    """
    exponent = torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32) / width
    angle = position_BT[:, None, :, None].float() * theta**-exponent
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """The backward pass of a rotation is the rotation back: three passes over memory, where autograd takes nine."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return x rotated."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x: the rotation back."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((right, left), dim=-1), sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply `rotary` angles to (B, heads, T, D)."""
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turned(x, cos, sin)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), Shazeer 2020; the dense layer and each single expert."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., H) -> (..., H)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DenseMLP(SwiGLU):
    """The feed-forward layer of a model without experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.intermediate_size)

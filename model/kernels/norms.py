"""RMSNorm with the addition before it, and RMSNorm of queries and keys with the rotation after it.

Shapes in names: B batch, T tokens, H hidden, N heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.kernels.launch import block, launch, loops, rows_at_once

# --- plain ------------------------------------------------------------------------------------------------------------


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number a row; autograd keeps two fp32 copies and passes over memory more often."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return a tensor like x."""
        normed, scale = _normed(x, weight, eps)
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


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the normalised x and the scale of each row."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype), scale


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


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(..., H): return x + update and its RMSNorm (Zhang and Sennrich 2019), whose mean square is taken in fp32."""
    if update is not None:
        x = x + update
    return x, _rms_norm(x, weight, eps)


def norm_rotate(x_BTND: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Return (B, N, T, D): each head's RMSNorm, turned by the angles of `rotary`."""
    x_BNTD = _rms_norm(x_BTND, weight, eps).transpose(1, 2)
    return _Rotate.apply(x_BNTD, cos, sin) if torch.is_grad_enabled() else _turned(x_BNTD, cos, sin)


# --- fused ------------------------------------------------------------------------------------------------------------


class _AddNorm(torch.autograd.Function):
    """Keeps the sum, which the residual stream is, and one number a row."""

    @staticmethod
    def forward(ctx, x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Any:
        """Return the sum and its norm, or the norm alone where nothing is added."""
        x, width = x.contiguous(), x.shape[-1]
        total = x if update is None else torch.empty_like(x)
        normed, scale = torch.empty_like(x), x.new_empty(x.numel() // width, dtype=torch.float32)
        added = x if update is None else update.contiguous()
        at_once = rows_at_once(width)
        launch(
            "add_norm_forward",
            -(-len(scale) // at_once),
            *(x, added, weight, total, normed, scale, len(scale), eps),
            WIDTH=width,
            BLOCK=block(width),
            ROWS=at_once,
            ADDS=update is not None,
        )
        ctx.save_for_backward(total, weight, scale)
        ctx.adds = update is not None
        ctx.set_materialize_grads(False)
        return (total, normed) if ctx.adds else normed

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of the sum, which is that of both terms, and that of the weight."""
        total, weight, scale = ctx.saved_tensors
        grad_sum, grad_normed = grads if ctx.adds else (None, *grads)
        if grad_normed is None:
            return grad_sum, grad_sum, None, None
        width, rows, at_once = total.shape[-1], len(scale), rows_at_once(total.shape[-1])
        programs, turns = loops(rows, at_once)
        grad_x, grad_weight = torch.empty_like(total), scale.new_empty(programs, width)
        grad_normed = grad_normed.contiguous()
        launch(
            "add_norm_backward",
            programs,
            *(total, weight, scale, grad_normed, grad_normed if grad_sum is None else grad_sum.contiguous()),
            *(grad_x, grad_weight, rows),
            WIDTH=width,
            BLOCK=block(width),
            ROWS=at_once,
            LOOPS=turns,
            ADDS=grad_sum is not None,
        )
        return grad_x, grad_x if ctx.adds else None, grad_weight.sum(0).to(weight.dtype), None


def add_norm_fused(x: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`add_norm` as one kernel each way."""
    if update is None:
        return x, _AddNorm.apply(x, None, weight, eps)
    return _AddNorm.apply(x, update, weight, eps)


class _NormRotate(torch.autograd.Function):
    """Keeps its input and one number a head of a token."""

    @staticmethod
    def forward(ctx, x_BTND: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, N, T, D), laid out as x is."""
        x_BTND = x_BTND.contiguous()
        y_BTND, scale = torch.empty_like(x_BTND), x_BTND.new_empty(x_BTND.shape[:-1].numel(), dtype=torch.float32)
        at_once = rows_at_once(x_BTND.shape[-1])
        launch(
            "norm_rotate_forward",
            -(-len(scale) // at_once),
            *(x_BTND, weight, cos, sin, y_BTND, scale, len(scale), eps, _positions(cos)),
            **_head_sizes(x_BTND),
        )
        ctx.save_for_backward(x_BTND, weight, cos, sin, scale)
        return y_BTND.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_BNTD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x_BTND, weight, cos, sin, scale = ctx.saved_tensors
        programs, turns = loops(len(scale), rows_at_once(x_BTND.shape[-1]))
        grad_x, grad_weight = torch.empty_like(x_BTND), scale.new_empty(programs, x_BTND.shape[-1])
        launch(
            "norm_rotate_backward",
            programs,
            *(x_BTND, weight, cos, sin, scale, grad_BNTD.transpose(1, 2).contiguous(), grad_x, grad_weight),
            *(len(scale), _positions(cos)),
            **_head_sizes(x_BTND),
            LOOPS=turns,
        )
        return grad_x, grad_weight.sum(0).to(weight.dtype), None, None, None


def norm_rotate_fused(x_BTND: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`norm_rotate` as one kernel each way."""
    return _NormRotate.apply(x_BTND, weight, eps, cos.contiguous(), sin.contiguous())


def _positions(cos: Tensor) -> int:
    """Return how many tokens have angles of their own: those of a row, or of all rows."""
    return cos.shape[0] * cos.shape[2]


def _head_sizes(x_BTND: Tensor) -> dict[str, int]:
    heads, width = x_BTND.shape[2:]
    return {"HEADS": heads, "HALF": width // 2, "BLOCK": block(width // 2), "ROWS": rows_at_once(width)}

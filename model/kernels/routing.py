"""Tokens on their way to the experts and back: the router, the dispatch and the sum of what comes back.

Shapes in names: S tokens, E experts, K experts of a token, P rows of all experts (padded groups), H hidden.
`row_SK` says in which row a token's k-th expert has it, `source_P` which token a row holds; a row that pads holds any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.launch import block, launch, loops, rows_at_once

# --- plain ------------------------------------------------------------------------------------------------------------


class _Dispatch(torch.autograd.Function):
    """A token's gradient is the sum over its rows, gathered without atomic additions."""

    @staticmethod
    def forward(ctx, x_SH: Tensor, source_P: Tensor, row_SK: Tensor) -> Tensor:
        """(P, H)."""
        ctx.save_for_backward(row_SK)
        return x_SH.index_select(0, source_P)

    @staticmethod
    def backward(ctx, grad_PH: Tensor) -> tuple[Tensor, None, None]:
        """(S, H)."""
        (row_SK,) = ctx.saved_tensors
        grad_SH = grad_PH.index_select(0, row_SK[:, 0])
        if row_SK.shape[1] > 1:
            others = (grad_PH.index_select(0, row_S).float() for row_S in row_SK.unbind(1)[1:])
            grad_SH = sum(others, grad_SH.float()).to(grad_PH.dtype)
        return grad_SH, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_PH: Tensor, weight_SK: Tensor, row_SK: Tensor, source_P: Tensor) -> Tensor:
        """(S, H), in the dtype of y."""
        ctx.save_for_backward(y_PH, weight_SK, row_SK, source_P)
        out_SH = None
        for slot, row_S in enumerate(row_SK.unbind(1)):
            part_SH = y_PH.index_select(0, row_S).float().mul_(weight_SK[:, slot, None])
            out_SH = part_SH if out_SH is None else out_SH.add_(part_SH)
        assert out_SH is not None, "a token has at least one route"
        return out_SH.to(y_PH.dtype)

    @staticmethod
    def backward(ctx, grad_SH: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of y and of the weights; a row that pads a group has weight 0."""
        y_PH, weight_SK, row_SK, source_P = ctx.saved_tensors
        grad_PH = grad_SH.index_select(0, source_P)
        grad_weight_P = (grad_PH.float() * y_PH).sum(-1)
        weight_P = torch.zeros_like(grad_weight_P).scatter_(0, row_SK.flatten(), weight_SK.flatten())
        return grad_PH * weight_P[:, None].to(grad_PH.dtype), grad_weight_P[row_SK], None, None


def router_logits(x_SH: Tensor, weight_EH: Tensor) -> Tensor:
    """(S, E), in fp32 whatever the weights are, as in DeepSpeed's gate."""
    return F.linear(x_SH.float(), weight_EH.float())


def dispatch(x_SH: Tensor, source_P: Tensor, row_SK: Tensor) -> Tensor:
    """(S, H) -> (P, H): each row's token."""
    return _Dispatch.apply(x_SH, source_P, row_SK)


def combine(y_PH: Tensor, weight_SK: Tensor, row_SK: Tensor, source_P: Tensor) -> Tensor:
    """(P, H) -> (S, H): the sum over a token's rows, each times its weight, in fp32."""
    return _Combine.apply(y_PH, weight_SK, row_SK, source_P)


# --- fused ------------------------------------------------------------------------------------------------------------


class _RouterLogits(torch.autograd.Function):
    """Reads x as it is: its copy in fp32 is twice as large, and so is that of its gradient."""

    @staticmethod
    def forward(ctx, x_SH: Tensor, weight_EH: Tensor) -> Tensor:
        """(S, E)."""
        x_SH, weight_EH = x_SH.contiguous(), weight_EH.contiguous()
        logits_SE = x_SH.new_empty(len(x_SH), len(weight_EH), dtype=torch.float32)
        width, at_once = x_SH.shape[1], rows_at_once(x_SH.shape[1])
        programs = -(-len(x_SH) // at_once)
        sizes = {"WIDTH": width, "BLOCK": block(width), "ROWS": at_once, "EXPERTS": len(weight_EH)}
        launch("router_forward", programs, x_SH, weight_EH, logits_SE, len(x_SH), **sizes)
        ctx.save_for_backward(x_SH, weight_EH)
        return logits_SE

    @staticmethod
    def backward(ctx, grad_SE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the weight."""
        x_SH, weight_EH = ctx.saved_tensors
        width, experts = x_SH.shape[1], len(weight_EH)
        programs, turns = loops(len(x_SH), 1)
        grad_x, grad_weight = torch.empty_like(x_SH), grad_SE.new_empty(programs, experts, width)
        sizes = {"WIDTH": width, "BLOCK": block(width), "LOOPS": turns, "EXPERTS": experts, "MANY": block(experts)}
        tensors = x_SH, weight_EH, grad_SE.contiguous(), grad_x, grad_weight
        launch("router_backward", programs, *tensors, len(x_SH), **sizes)
        return grad_x, grad_weight.sum(0).to(weight_EH.dtype)


def router_logits_fused(x_SH: Tensor, weight_EH: Tensor) -> Tensor:
    """`router_logits` as one kernel each way."""
    return _RouterLogits.apply(x_SH, weight_EH)


class _FusedDispatch(_Dispatch):
    """Forward as the plain one, where PyTorch's gathering is one kernel already."""

    @staticmethod
    def backward(ctx, grad_PH: Tensor) -> tuple[Tensor, None, None]:
        """(S, H)."""
        (row_SK,) = ctx.saved_tensors
        return _gather_sum(grad_PH.contiguous(), None, row_SK), None, None


class _FusedCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_PH: Tensor, weight_SK: Tensor, row_SK: Tensor, source_P: Tensor) -> Tensor:
        """(S, H), in the dtype of y."""
        y_PH, weight_SK = y_PH.contiguous(), weight_SK.contiguous()
        ctx.save_for_backward(y_PH, weight_SK, row_SK, source_P)
        return _gather_sum(y_PH, weight_SK, row_SK)

    @staticmethod
    def backward(ctx, grad_SH: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of y and of the weights; a row that pads a group gets 0."""
        y_PH, weight_SK, row_SK, source_P = ctx.saved_tensors
        grad_PH, grad_weight_SK = torch.empty_like(y_PH), torch.empty_like(weight_SK)
        launch(
            "combine_backward",
            len(y_PH),
            *(grad_SH.contiguous(), y_PH, weight_SK, row_SK, source_P, grad_PH, grad_weight_SK),
            **_sizes(y_PH, row_SK),
        )
        return grad_PH, grad_weight_SK, None, None


def dispatch_fused(x_SH: Tensor, source_P: Tensor, row_SK: Tensor) -> Tensor:
    """`dispatch` as one kernel each way."""
    return _FusedDispatch.apply(x_SH, source_P, row_SK.contiguous())


def combine_fused(y_PH: Tensor, weight_SK: Tensor, row_SK: Tensor, source_P: Tensor) -> Tensor:
    """`combine` as one kernel each way."""
    return _FusedCombine.apply(y_PH, weight_SK, row_SK.contiguous(), source_P)


def _gather_sum(rows_PH: Tensor, weight_SK: Tensor | None, row_SK: Tensor) -> Tensor:
    """(S, H): the sum over a token's rows, each times its weight if there are weights."""
    out_SH = rows_PH.new_empty(len(row_SK), rows_PH.shape[1])
    weights = row_SK if weight_SK is None else weight_SK
    sizes = _sizes(rows_PH, row_SK)
    launch("gather_sum", len(row_SK), rows_PH, weights, row_SK, out_SH, WEIGHED=weight_SK is not None, **sizes)
    return out_SH


def _sizes(rows_PH: Tensor, row_SK: Tensor) -> dict[str, int]:
    width = rows_PH.shape[1]
    return {"WIDTH": width, "BLOCK": block(width), "TOP_K": row_SK.shape[1], "warps": 2 if width <= 512 else 4}

"""Matrix products that share an input: SwiGLU over tokens grouped by their experts, and several projections of x.

Shapes in names: P rows of all groups (a dense layer is a single group), H hidden, W width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels.launch import launch

_BLOCK = 1024


class Expert(Protocol):
    """A SwiGLU layer (Shazeer 2020): the weights of gate and up are (W, H), that of down (H, W)."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


def swiglu(x: Tensor, expert: Expert) -> Tensor:
    """Return down(silu(gate(x)) * up(x))."""
    return expert.down_proj(F.silu(expert.gate_proj(x)) * expert.up_proj(x))


def feed_forward(x_PH: Tensor, sizes: Sequence[int], experts: Sequence[Expert]) -> Tensor:
    """(P, H) -> (P, H): the first sizes[0] rows through the first expert, and so on."""
    if len(experts) == 1:
        return swiglu(x_PH, experts[0])
    return torch.cat([swiglu(rows, expert) for rows, expert in zip(x_PH.split(sizes), experts, strict=True)])


def project(x: Tensor, projections: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Return what each of the projections makes of x."""
    return tuple(projection(x) for projection in projections)


class _FeedForward(torch.autograd.Function):
    """Gate and up are one product, no result is copied to lie beside another, and silu(gate) * up is not kept.

    The weights stay apart as parameters; gate and up are joined for each product, a five-hundredth of its work.
    """

    @staticmethod
    def forward(ctx, x_PH: Tensor, sizes: Sequence[int], *weights: Tensor) -> Tensor:
        """`weights`: gate, up and down of one expert after the other."""
        x_PH, width = x_PH.contiguous(), weights[0].shape[0]
        joined = [torch.cat(pair) for pair in zip(weights[::3], weights[1::3], strict=True)]
        gate_up = x_PH.new_empty(len(x_PH), 2 * width)
        hidden, y_PH = x_PH.new_empty(len(x_PH), width), torch.empty_like(x_PH)
        for rows, both in _groups(sizes, joined):
            torch.mm(x_PH[rows], both.T, out=gate_up[rows])
        _elementwise("swiglu_forward", gate_up, hidden)
        for rows, down in _groups(sizes, weights[2::3]):
            torch.mm(hidden[rows], down.T, out=y_PH[rows])
        ctx.save_for_backward(x_PH, gate_up, *joined, *weights[2::3])
        ctx.sizes = sizes
        return y_PH

    @staticmethod
    def backward(ctx, grad_PH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of every weight."""
        x_PH, gate_up, *weights = ctx.saved_tensors
        joined, downs = weights[: len(ctx.sizes)], weights[len(ctx.sizes) :]
        grad_PH, width = grad_PH.contiguous(), downs[0].shape[1]
        hidden = gate_up.new_empty(len(x_PH), width)
        grad_gate_up, grad_x = torch.empty_like(gate_up), torch.empty_like(x_PH)
        for rows, down in _groups(ctx.sizes, downs):
            torch.mm(grad_PH[rows], down, out=hidden[rows])
        _elementwise("swiglu_backward", gate_up, hidden, grad_gate_up)
        grads: list[Tensor] = []
        for rows, both in _groups(ctx.sizes, joined):
            torch.mm(grad_gate_up[rows], both, out=grad_x[rows])
            grads += (grad_gate_up[rows].T @ x_PH[rows]).split(width)
            grads.append(grad_PH[rows].T @ hidden[rows])
        return grad_x, None, *grads


def feed_forward_fused(x_PH: Tensor, sizes: Sequence[int], experts: Sequence[Expert]) -> Tensor:
    """`feed_forward` with one elementwise kernel each way for all experts."""
    shape = x_PH.shape
    if x_PH.dim() > 2:
        x_PH, sizes = x_PH.flatten(0, -2), [shape[:-1].numel()]
    projections = (linear for expert in experts for linear in (expert.gate_proj, expert.up_proj, expert.down_proj))
    return _FeedForward.apply(x_PH, sizes, *(linear.weight for linear in projections)).view(shape)


class _Project(torch.autograd.Function):
    """The gradients that the projections have for x are added up where the products are made."""

    @staticmethod
    def forward(ctx, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return a product for every weight."""
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, weight) for weight in weights)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x and of every weight."""
        x, *weights = ctx.saved_tensors
        flat = [grad.flatten(0, -2) for grad in grads]
        grad_x = flat[0] @ weights[0]
        for grad, weight in zip(flat[1:], weights[1:], strict=True):
            torch.addmm(grad_x, grad, weight, out=grad_x)
        return grad_x.view_as(x), *(grad.T @ x.flatten(0, -2) for grad in flat)


def project_fused(x: Tensor, projections: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """`project` without additions of their own going backward."""
    return _Project.apply(x, *(projection.weight for projection in projections))


def _groups(sizes: Sequence[int], weights: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each expert and its weight."""
    start = 0
    for size, weight in zip(sizes, weights, strict=True):
        yield slice(start, start + size), weight
        start += size


def _elementwise(name: str, gate_up: Tensor, hidden: Tensor, *others: Tensor) -> None:
    elements = hidden.numel()
    launch(name, -(-elements // _BLOCK), gate_up, hidden, *others, elements, WIDTH=hidden.shape[1], BLOCK=_BLOCK)

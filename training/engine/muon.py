"""Muon's orthogonalisation in three iterations, on the matrix of inner products: `ns_method` "polar".

DeepSpeed's own take five ("standard", "gram"). With experts, hidden size 256 and 4,096 tokens a step, a quarter of the
step goes into them on a CPU: their cost is that of the matrices, not of the tokens. Here every iteration has the
polynomial that is best for it (Amsel et al. 2025, "The Polar Express", arXiv 2505.16932) in place of one for all, and
works on the small square matrix X X^T instead of the wide X; and X is scaled by a norm that is closer to its largest
singular value than the Frobenius norm is, so that there is less to lift. What it costs and what it does to the loss:
docs/dev/performance.md.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""(a, b, c) of a x + b x^3 + c x^5, a minimax polynomial after the other for singular values from 0.01 to 1. They end
between 0.73 and 1.27; DeepSpeed's between 0.7 and 1.2. A fourth polynomial would need X itself again: rounding makes
X X^T slightly indefinite; three iterations are too few for that to grow."""

_SLACK = 1.02  # for the rounding of the norm in 16 bits
_TINY = 1e-30  # far below any trace that is not 0; with `largest` as small it is still a normal fp32 number


def orthogonalize(matrix: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return about `scale` U V^T of the singular value decomposition U S V^T of each (..., m, n), computed in `dtype`.

    `dtype` is bf16 or fp32, which have the range for squares of small gradients. A matrix of zeros stays one.
    """
    wide = matrix.to(dtype)
    tall = matrix.shape[-2] > matrix.shape[-1]
    gram = wide.mT @ wide if tall else wide @ wide.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).float().sum(-1)[..., None, None].clamp(min=_TINY)
    gram = gram / trace.to(dtype)
    square = gram @ gram
    # the square's Frobenius norm is the sum of the 8th powers of X's singular values, to the power 1/2
    largest = square.float().norm(dim=(-2, -1), keepdim=True).sqrt().clamp(min=torch.finfo(dtype).eps) * _SLACK
    gram, square = gram / largest.to(dtype), square / largest.square().to(dtype)
    factor = _polynomial(gram, square, COEFFICIENTS[0])
    product = factor
    for coefficients in COEFFICIENTS[1:]:
        gram = factor @ gram @ factor  # of the X after this iteration
        factor = _polynomial(gram, gram @ gram, coefficients)
        product = factor @ product
    product = product * ((trace * largest).rsqrt() * scale).to(dtype)
    return wide @ product.mT if tall else product @ wide


def _polynomial(gram: Tensor, square: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Return a I + b G + c G^2, which an iteration multiplies X with."""
    a, b, c = coefficients
    factor = (gram * b).add_(square, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def update(
    grad: Tensor,
    momentum: Tensor,
    beta: float = 0.95,
    *,
    nesterov: bool = True,
    is_expert_group: bool = False,
    num_heads: int | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the step that Muon takes for `grad`, (..., m, n), which it overwrites: DeepSpeed's `muon_update`.

    With `num_heads` each head's rows are a matrix of their own; a stack of experts (`is_expert_group`) is one anyway.

    A gradient that is not finite comes back as it is, so that the overflow is seen, and leaves `momentum` alone.
    DeepSpeed decides that without synchronising, with seven passes over a matrix; on a CPU a sum is enough.
    """
    if not torch.isfinite(grad.sum(dtype=torch.float32)) and not torch.isfinite(grad).all():  # waits for a GPU
        return grad
    momentum.lerp_(grad, 1 - beta)
    step = grad.lerp_(momentum, beta) if nesterov else momentum
    matrices = step if num_heads is None else step.unflatten(0, (num_heads, -1))
    rows, columns = matrices.shape[-2:]
    result = orthogonalize(matrices, dtype, scale=max(1.0, rows / columns) ** 0.5)
    return result.reshape(grad.shape).to(grad.dtype)


def install_polar(ds_config: dict[str, Any], *, bf16_fast: bool) -> dict[str, Any]:
    """Return what DeepSpeed is to read: "standard" in place of "polar", which from then on is the iteration here.

    For a configuration without "polar" DeepSpeed's own is put back, which an engine before this one may have replaced.
    """
    params = ds_config.get("optimizer", {}).get("params", {})
    polar = params.get("ns_method") == "polar"
    if polar or "deepspeed.runtime.zero.muon.original_muon" in sys.modules:
        _replace_update((torch.bfloat16 if bf16_fast else torch.float32) if polar else None)
    if not polar:
        return ds_config
    optimizer = ds_config["optimizer"]
    return {**ds_config, "optimizer": {**optimizer, "params": {**params, "ns_method": "standard"}}}


def _replace_update(dtype: torch.dtype | None) -> None:
    """Have "standard" be the iteration here in `dtype`, or DeepSpeed's for None."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    theirs: Any = getattr(original_muon.muon_update, "theirs", original_muon.muon_update)

    def muon_update(*args: Any, ns_method: str = "gram", **more: Any) -> Tensor:
        if dtype is None or ns_method != "standard":
            return theirs(*args, ns_method=ns_method, **more)
        return update(*args, dtype=dtype, **more)

    setattr(muon_update, "theirs", theirs)  # noqa: B010 (functions have no such attribute for a type checker)
    modules: list[Any] = [original_muon, muon_optimizer]  # with ZeRO and without
    for module in modules:
        module.muon_update = muon_update

"""Products of few rows with a weight matrix: what decoding spends its time on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 8  # with more of them the usual product has work enough for every weight that it reads
LEAST_WEIGHTS = 2**14  # a smaller matrix is in the cache, where a call costs more than its arithmetic


def reads_badly(weight: Tensor, rows: int) -> bool:
    """Whether `F.linear` is the slower way for so many rows.

    Only for fp32 on a CPU. MKL's matrix-vector product uses one core and a quarter of its bandwidth on processors
    that are not Intel's (10 of 45 GB/s measured on an EPYC); its batched product of the same matrix, cut in halves,
    does not. The weights stay as and where they are.
    """
    return (
        rows <= MOST_ROWS
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and (weight.numel() >= LEAST_WEIGHTS and weight.is_contiguous())
    )


def halves(weight: Tensor) -> Tensor:
    """(O, I) -> (2, O/2, I), or (1, O, I) where O is odd: a view, for `torch.bmm` with `columns`."""
    parts = 2 - weight.shape[0] % 2
    return weight.view(parts, weight.shape[0] // parts, weight.shape[1])


def columns(x_MI: Tensor, parts: int) -> Tensor:
    """(M, I) -> (parts, I, M): a view, whose strides tell MKL that it is transposed even where M is 1."""
    return x_MI.t().expand(parts, -1, -1)


def few_rows_linear(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """`F.linear` without a bias, (M, I) and (O, I) -> (M, O), the faster way for few rows."""
    if not reads_badly(weight_OI, len(x_MI)):
        return F.linear(x_MI, weight_OI)
    split = halves(weight_OI)
    y = torch.bmm(split, columns(x_MI, len(split)))
    # a row of stride 1 in both directions, as t() makes it, would lead the next product into the slow way
    return y.view(1, -1) if len(x_MI) == 1 else y.view(weight_OI.shape[0], -1).t()

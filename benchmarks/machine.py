"""What this machine can do at most: matrix products and copies, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def matrix_rate(dtype: torch.dtype, m: int = 2048, n: int = 2048, k: int = 2048, *, device: str = "cpu") -> float:
    """FLOP/s of (m, k) @ (k, n), the best of several, with the threads that PyTorch has now."""
    a = torch.randn(m, k, device=device).to(dtype)
    b = torch.randn(k, n, device=device).to(dtype)
    return 2 * m * n * k / _best_seconds(lambda: a @ b, device)


def copy_bandwidth(megabytes: int = 256, *, device: str = "cpu") -> float:
    """Bytes/s read and written by copying a tensor that no cache holds."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source).fill_(0)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: str, times: int = 10) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once(), once()
    return min(once() for _ in range(times))

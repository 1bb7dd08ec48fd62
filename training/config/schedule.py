"""The learning rate curve of DeepSpeed's WarmupCosineLR in closed form, for the plan and for tests."""

from __future__ import annotations

import math


def warmup_cosine_lr(
    step: int,
    *,
    peak: float,
    total: int,
    warmup: int,
    floor_ratio: float,
    warmup_min_ratio: float = 0.0,
    warmup_type: str = "linear",
) -> float:
    """The rate that optimizer step `step` (counted from 0) is taken with.

    DeepSpeed moves its schedule after each step, so a step uses the curve's previous point: step 0 always runs with
    rate 0, and with linear warm-up from 0 so does step 1.
    """
    if step <= 0:
        return 0.0
    point = step - 1
    warmup = max(2, warmup)  # DeepSpeed's own minimum
    if point < warmup:
        rise = _rise(point, warmup, warmup_type)
        return peak * (warmup_min_ratio + (1 - warmup_min_ratio) * rise)
    progress = min(1.0, (point - warmup + 1) / max(1, total - warmup))
    fall = (1 + math.cos(math.pi * progress)) / 2
    return peak * max(0.0, floor_ratio + (1 - floor_ratio) * fall)


def _rise(point: int, warmup: int, warmup_type: str) -> float:
    if warmup_type == "linear":
        return point / warmup
    return math.log(point + 1) / math.log(warmup)

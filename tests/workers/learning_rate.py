"""The learning rate that our recipes ask for, in closed form, to hold DeepSpeed's own schedule against."""

from __future__ import annotations

import math


def warmup_cosine_lr(step: int, *, peak: float, total: int, warmup: int, floor_ratio: float) -> float:
    """Return the learning rate of optimizer step `step`, from 0: linear warm-up from 0, then a cosine to the floor.

    DeepSpeed moves its schedule after each step, so that a step uses the curve's previous point: steps 0 and 1 run
    with a learning rate of 0. Its warm-up has at least two steps.
    """
    warmup = max(2, warmup)
    if step - 1 < warmup:
        return peak * max(0, step - 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor_ratio + (1 - floor_ratio) * (1 + math.cos(math.pi * progress)) / 2)

"""train.py that times the parts of its steps: BUFUDU_SPEED_STEP=DIR, where each rank leaves rankN.json.

    deepspeed --module benchmarks.speed.step_child FLAGS-OF-TRAIN...

Parts nest (an attention layer lies within the forward pass, a reduction within the backward pass); a part's time is its
own, without what is nested in it, so that all parts sum up to the step.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.scaling_child import PAYLOADS

FOLDER = "BUFUDU_SPEED_STEP"


class Clock:
    """Seconds by part, each without those nested in it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.open: list[float] = []  # of each part under way, the seconds of what was nested in it

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time goes to `part`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.open.append(0.0)
            started = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                taken = self.now() - started
                self.seconds[part] += taken - self.open.pop()
                if self.open:
                    self.open[-1] += taken

        return call

    @staticmethod
    def now() -> float:
        """Seconds, when the device has done what it was given."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def watch(clock: Clock, folder: Path) -> None:
    """Time the parts of every step; a file a rank, written after each."""
    import torch.distributed as dist

    for name in PAYLOADS:
        setattr(dist, name, clock.timed("reduction", getattr(dist, name)))
    _watch_model(clock)
    from deepspeed.runtime.engine import DeepSpeedEngine

    from training import data_sampler
    from training.trainer import Trainer

    data_sampler.tensors = clock.timed("data", data_sampler.tensors)
    DeepSpeedEngine.forward = clock.timed("norms and sums", DeepSpeedEngine.forward)
    DeepSpeedEngine.backward = clock.timed("backward", DeepSpeedEngine.backward)
    DeepSpeedEngine.step = clock.timed("optimizer", DeepSpeedEngine.step)
    step, after = clock.timed("loop", Trainer._step), clock.timed("loop", Trainer._after_step)
    steps: list[dict[str, float]] = []

    def timed_step(trainer: Trainer) -> str | None:
        clock.seconds.clear()
        return step(trainer)

    def timed_after(trainer: Trainer) -> None:
        after(trainer)
        steps.append(dict(clock.seconds))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
        (folder / f"rank{trainer.world.rank}.json").write_text(json.dumps({"peak_bytes": peak, "steps": steps}))

    Trainer._step = timed_step  # pyright: ignore[reportAttributeAccessIssue]
    Trainer._after_step = timed_after  # pyright: ignore[reportAttributeAccessIssue]


def _watch_model(clock: Clock) -> None:
    from torch import nn

    from model import moe, transformer
    from model.kernels import products

    transformer.Attention.forward = clock.timed("attention", transformer.Attention.forward)
    transformer.linear_cross_entropy = clock.timed("head and loss", transformer.linear_cross_entropy)
    products.swiglu = clock.timed("experts", products.swiglu)
    moe.DeepSpeedMoE.forward = clock.timed("router", moe.DeepSpeedMoE.forward)
    moe.run_experts = clock.timed("dispatch", moe.run_experts)
    nn.Embedding.forward = clock.timed("embedding", nn.Embedding.forward)


if __name__ == "__main__":
    watch(Clock(), Path(os.environ[FOLDER]))
    from training.run import main

    sys.exit(main(sys.argv[1:], __doc__ or ""))

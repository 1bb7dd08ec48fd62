"""How often a run looks at itself, where its flags leave that open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config.command_line import Options


@dataclass(frozen=True)
class Intervals:
    """Optimizer steps between two evaluations, samples, checkpoints."""

    evaluation: int
    sample: int
    save: int


def intervals(options: Options, total_steps: int) -> Intervals:
    """Of a run of `total_steps`."""
    return Intervals(
        evaluation=options.eval_interval or max(1, min(options.save_interval, math.ceil(total_steps / 20))),
        sample=options.sample_interval or min(1000, math.ceil(total_steps / 10)),
        save=options.save_interval,
    )

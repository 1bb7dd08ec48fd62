"""train.py whose loss is not a number on some rows of the corpus: BUFUDU_CHAOS_POISON="12,99", or "all" from 200 on.

deepspeed --module stress.chaos.child FLAGS-OF-TRAIN...
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from typing import Any

POISON = "BUFUDU_CHAOS_POISON"


def poison(rows: frozenset[int]) -> None:
    """Make the losses, and so the gradients, of micro-batches with these rows not a number."""
    from model.transformer import CausalLM, Losses
    from training import data_sampler

    right_tensors, right_forward, poisoned = data_sampler.tensors, CausalLM.forward, False

    def tensors(stream: Any, chosen: list[int], *more: Any) -> Any:
        nonlocal poisoned
        poisoned = not rows.isdisjoint(chosen)
        return right_tensors(stream, chosen, *more)

    def forward(self: CausalLM, *arguments: Any) -> Losses:
        losses = right_forward(self, *arguments)
        return replace(losses, total=losses.total * math.nan, lm=losses.lm * math.nan) if poisoned else losses

    data_sampler.tensors, CausalLM.forward = tensors, forward  # type: ignore[method-assign]


if __name__ == "__main__":
    from training.run import main

    poison(frozenset(int(row) for row in os.environ[POISON].split(",")))
    sys.exit(main(sys.argv[1:], __doc__ or ""))

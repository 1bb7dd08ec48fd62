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
    import training.trainer
    from model.transformer import Losses
    from training import sampler, step

    def forward_backward(engine: Any, stream: Any, chosen: list[int], seq_len: int) -> Losses:
        if rows.isdisjoint(chosen):
            return step.forward_backward(engine, stream, chosen, seq_len)
        losses = engine(*sampler.tensors(stream, chosen, seq_len, engine.device))
        engine.backward(losses.total * math.nan)
        return replace(losses, lm=losses.lm * math.nan)

    training.trainer.forward_backward = forward_backward


if __name__ == "__main__":
    from training.run import main

    poison(frozenset(int(row) for row in os.environ[POISON].split(",")))
    sys.exit(main(sys.argv[1:], __doc__ or ""))

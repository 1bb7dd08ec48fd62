"""train.py that is asked to stop at a chosen place: `worker_interrupt.py PLACE STEP FLAGS...`.

PLACE "accumulation" is after the first micro-batch of step STEP (from 1), "evaluation" inside the evaluation after it,
before its first pass, "never" nowhere. Only the last rank is asked; the others have to hear of it.
"""

from __future__ import annotations

import sys
from typing import Any

from training import trainer
from training.checkpointing.run_state import RunState
from training.context import RunContext
from training.run import main

PLACE, STEP = sys.argv[1], int(sys.argv[2])


def ask(context: RunContext) -> None:
    """Have the last rank's user had enough."""
    if context.world.rank == context.world.size - 1:
        context.stop.request("enough")


class Interrupted(trainer.Trainer):
    """A trainer that is asked to stop within a step."""

    def _step(self) -> str | None:
        if PLACE == "accumulation" and self.state.step == STEP - 1:
            plain = self.recorder.accumulator.add_micro_batch

            def add(*losses: Any) -> None:
                plain(*losses)
                ask(self.context)

            self.recorder.accumulator.add_micro_batch = add
        return super()._step()


class InterruptedEvaluator(trainer.Evaluator):
    """One that is asked to stop within an evaluation."""

    passes, step = 0, None

    def _evaluate(self, state: RunState) -> bool:
        self.passes, self.step = 0, state.step
        return super()._evaluate(state)

    def _asked_to_stop(self) -> bool:
        self.passes += 1
        if PLACE == "evaluation" and self.step == STEP and self.passes == 1:
            ask(self.context)
        return super()._asked_to_stop()


if __name__ == "__main__":
    trainer.Trainer, trainer.Evaluator = Interrupted, InterruptedEvaluator
    sys.exit(main(sys.argv[3:], ""))

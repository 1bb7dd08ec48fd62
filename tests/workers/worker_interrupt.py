"""train.py that is asked to stop at a chosen place: `worker_interrupt.py PLACE STEP FLAGS...`.

PLACE "accumulation" is after the first micro-batch of step STEP (from 1), "evaluation" inside the evaluation after it,
before its first pass, "never" nowhere. Only the last rank is asked; the others have to hear of it.
"""

from __future__ import annotations

import sys
from typing import Any

from training import trainer
from training.run import main

PLACE, STEP = sys.argv[1], int(sys.argv[2])


class Interrupted(trainer.Trainer):
    """A trainer whose user has had enough."""

    passes = 0

    def _ask(self) -> None:
        if self.world.rank == self.world.size - 1:
            self.context.stop.request("enough")

    def _step(self) -> str | None:
        if PLACE == "accumulation" and self.state.step == STEP - 1:
            plain = self.recorder.accumulator.add_micro_batch

            def add(*losses: Any) -> None:
                plain(*losses)
                self._ask()

            self.recorder.accumulator.add_micro_batch = add
        return super()._step()

    def _evaluate(self) -> bool:
        self.passes = 0
        return super()._evaluate()

    def _asked_to_stop(self) -> bool:
        self.passes += 1
        if PLACE == "evaluation" and self.state.step == STEP and self.passes == 1:
            self._ask()
        return super()._asked_to_stop()


if __name__ == "__main__":
    trainer.Trainer = Interrupted
    sys.exit(main(sys.argv[3:], ""))

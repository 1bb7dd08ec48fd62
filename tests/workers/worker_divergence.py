"""train.py whose numbers go wrong: `worker_divergence.py FAULT BATCHES FLAGS...`.

BATCHES ("3" or "3,4") are numbers of global batches of the order of the data; "all" is every one. The faults: "loss"
makes a loss of the last rank infinite, "layer" the output of its last attention, "gradient" that of the embedding, and
"weights" leaves one of rank 0's fp32 weights not a number after the step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cpu_fp16 import allow_fp16

from training import trainer
from training.engine.internals import master_weights
from training.run import main


class Planted(trainer.Trainer):
    """A trainer with a fault."""

    fault, batches = sys.argv[1], sys.argv[2]

    def _step(self) -> str | None:
        number = self.state.batch_number(self.state.step)
        if self.batches != "all" and number not in map(int, self.batches.split(",")):
            return super()._step()
        last = self.world.rank == self.world.size - 1
        with getattr(self, f"_{self.fault}")() if last or self.fault in ("gradient", "weights") else no_fault():
            return super()._step()

    @contextmanager
    def _loss(self) -> Iterator[None]:
        hook = self.engine.module.register_forward_hook(
            lambda _module, _inputs, losses: losses._replace(lm=losses.lm * math.inf)
        )
        yield
        hook.remove()

    @contextmanager
    def _layer(self) -> Iterator[None]:
        layer = self.engine.module.get_submodule("model.layers.1.self_attn.o_proj")
        hook = layer.register_forward_hook(lambda _module, _inputs, output: output * math.inf)
        yield
        if self.engine.module.training:  # it is looked for after the step, too
            self.hook = hook

    @contextmanager
    def _gradient(self) -> Iterator[None]:
        hook = self.engine.module.model.embed_tokens.weight.register_hook(lambda gradient: gradient * math.inf)
        yield
        hook.remove()

    @contextmanager
    def _weights(self) -> Iterator[None]:
        yield
        if self.world.rank == 0:
            next(iter(master_weights(self.engine).values()))[0] = math.nan

    def _diverged(self, what: str) -> None:
        try:
            super()._diverged(what)
        finally:
            if hook := getattr(self, "hook", None):
                hook.remove()


@contextmanager
def no_fault() -> Iterator[None]:
    """The other ranks."""
    yield


if __name__ == "__main__":
    allow_fp16()
    trainer.Trainer = Planted
    sys.exit(main(sys.argv[3:], ""))

"""When the numbers go wrong: what is not finite, where in the network it begins, and what to skip after going back."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.files import append_whole
from corpus.shards import TokenStream
from model.kernels import Kernels
from training import data_sampler
from training.checkpointing.run_state import RunState
from training.engine.internals import loss_scale, lowest_loss_scale, non_finite_weights
from training.engine.protocol import Engine
from training.processes.process_group import gather_from_ranks

# In fp16 one batch may overflow going forward too; its step is skipped like any other, and three are no accident
FP16_LOSSES_IN_A_ROW = 3


class Diverged(Exception):
    """The run cannot go on from where it is; the message says why, and what to do."""


@dataclass(frozen=True)
class Report:
    """`what` was seen at optimizer step `step`, trained on global batch `batch` of the order of the data, made of
    `rows` of the training split; `where` is the first place in the network that is not finite.
    """

    step: int
    batch: int
    rows: list[int]
    what: str
    where: str

    def write(self, folder: Path) -> None:
        """Write a line of divergence.jsonl, if there is space on the disk: it is on the terminal, too."""
        line = json.dumps(asdict(self), ensure_ascii=False) + "\n"
        with suppress(OSError):
            append_whole(folder / "divergence.jsonl", line.encode())

    def __str__(self) -> str:
        return (
            f"{self.what} at step {self.step:,}, on batch {self.batch:,} of the data (rows {_few(self.rows)}); "
            f"{self.where}"
        )


class NonFiniteMonitor:
    """Looks at every step, on every rank alike, and says what is wrong with its numbers."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.fp16 = engine, engine.fp16_enabled()
        self.bad_losses = 0  # in a row
        self.stepped = True  # whether the step that was looked at last has reached the weights
        self.lowest_scale = lowest_loss_scale(engine)

    def check_loss(self, finite: bool) -> str | None:
        """Look at a step before the weights change; `finite`: whether the losses of all ranks and micro-batches are."""
        self.stepped = False
        self.bad_losses = 0 if finite else self.bad_losses + 1
        if finite or (self.fp16 and self.bad_losses < FP16_LOSSES_IN_A_ROW):
            return None
        return "the loss is not a finite number" + (f" ({self.bad_losses} steps in a row)" if self.fp16 else "")

    def check_step(self, scale_before: float | None) -> str | None:
        """Look at a step after it; the same on every rank, as DeepSpeed reduces what is read here."""
        self.stepped = True
        skipped = not self.engine.was_step_applied()
        if self.fp16:
            if skipped and self.lowest_scale and scale_before == self.lowest_scale == loss_scale(self.engine):
                return f"the gradients overflow fp16 even at the lowest loss scale ({self.lowest_scale:g})"
            return None
        norm = self.engine.get_global_grad_norm()
        # DeepSpeed writes -1 for a norm that is not finite
        if skipped or (norm is not None and not 0 <= float(norm) < math.inf):
            return "the gradient norm is not a finite number"
        return None


def checkpoint_to_go_back_to(found: Path | None, report: Report, rollbacks: int, most: int | None) -> Path:
    """Return `found`, the last good checkpoint; Diverged if the run may not go back to it, or there is none.

    The run went back `rollbacks` times before, and may `most` times: None if it is to stop at once.
    """
    last_good = f"the last good checkpoint is {found}" if found else "there is no checkpoint before it"
    if most is None:
        fix = "Try a lower learning rate, or --on_divergence rollback, which skips such batches"
        raise Diverged(f"{report}; {last_good}. {fix}")
    if rollbacks >= most:
        raise Diverged(f"{report}; gone back {rollbacks} times already (--max_rollbacks); {last_good}")
    if found is None:
        raise Diverged("there is no checkpoint to go back to")
    return found


def without_batch(saved: RunState, before: RunState, batch: int) -> tuple[RunState, str]:
    """Return the state to go on with from a checkpoint of state `saved`, and which batches it skips, for people.

    `before` is the state of the run when its numbers went wrong on `batch`. If a batch since the checkpoint is skipped
    already, leaving out single ones was not enough: all since the checkpoint are.
    """
    first = saved.batch_number(saved.step)
    again = any(first <= number <= batch for number in before.skipped_batches)
    skipped = range(first if again else batch, batch + 1)
    state = saved.model_copy(
        update={
            "skipped_batches": sorted({*before.skipped_batches, *skipped}),
            "rollbacks": before.rollbacks + 1,
            "wall_seconds": before.wall_seconds,
            "total_steps": before.total_steps,
            "identity": before.identity,
            "ds_config": before.ds_config,
        }
    )
    return state, f"batches {first:,} to {batch:,}" if again else f"batch {batch:,}"


def locate(engine: Engine, stream: TokenStream, micro_batches: list[list[int]], seq_len: int) -> str:
    """Return where in the network it begins; collective. `micro_batches` are this rank's rows of the step."""
    if bad := list(dict.fromkeys(name for part in gather_from_ranks(non_finite_weights(engine)) for name in part)):
        return f"{len(bad)} weight tensor{'s' if len(bad) > 1 else ''} not finite, {bad[0]} among them"
    outputs = gather_from_ranks(_first_bad_output(engine, stream, micro_batches, seq_len))
    if found := next(filter(None, outputs), None):
        return f"all weights are finite, the output of {found} is not"
    return "all weights and the outputs of all layers are finite, so it arises in the loss or going backward"


def _first_bad_output(engine: Engine, stream: TokenStream, micro_batches: list[list[int]], seq_len: int) -> str | None:
    """Return the first module, in the order of computing, with an output that is not finite; passes over all rows."""
    found: list[str] = []
    kernels = engine.module.kernels

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if not found and any(
                torch.is_tensor(t) and t.is_floating_point() and not t.isfinite().all() for t in tensors
            ):
                found.append(name)

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in engine.module.named_modules()
        if name and not list(module.children())
    ]
    engine.module.use_kernels(Kernels())  # a fused one passes over layers
    try:
        with torch.no_grad():
            for rows in micro_batches:  # all of them on every rank: experts may be on other ranks
                ids, targets = data_sampler.tensors(stream, rows, seq_len, engine.device)
                engine.module.loss_sum(ids, targets)
    finally:
        engine.module.use_kernels(kernels)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _few(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:4]))
    return shown if len(rows) <= 4 else f"{shown} and {len(rows) - 4} more, all in divergence.jsonl"

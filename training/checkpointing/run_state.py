"""Where a run stands, and what a continued run must share with the interrupted one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError

# Of the DeepSpeed JSON: what changes how a step is computed or shown, but not what it computes
_HARMLESS = (
    "gradient_accumulation_steps",
    "zero_optimization",
    "zero_allow_",
    "zero_force_",
    "tensorboard",
    "csv_monitor",
    "wandb",
    "comet",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "compile",
    "autotuning",
    "optimizer.params.torch_adam",
    "optimizer.params.fused",
    "optimizer.params.foreach",
)
# Another optimizer has other states, which no checkpoint of this one holds
_NEVER = ("optimizer.type",)
# Told when it differs: a run may be made longer, and the balancing loss is that of a micro-batch
_TOLD = ("scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps", "train_micro_batch_size_per_gpu")


@dataclass
class RunState:
    """Where a run stands; all of it goes through JSON.

    `identity` and `ds_config` (resolved) are what it is trained with. `stale_evaluations` counts those since the best
    one; `alarms` names those that have been raised. `seconds` is time spent in steps, `wall_seconds` all time of all
    sessions, set-up included; `pace` is that of a step in the last session, evaluations and saves included. `done`
    holds the step at which the evaluation and the sample were last made, so that what an interruption left undone is
    made up for; `finished` says that nothing is left. `left_out` are numbers of global batches that a rollback has
    taken out of the order of the data.
    """

    step: int = 0
    total_steps: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    save_seconds: float = 0.0
    pace: float | None = None
    alarms: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    rollbacks: int = 0
    finished: bool = False
    identity: dict[str, Any] = field(default_factory=dict)
    ds_config: dict[str, Any] = field(default_factory=dict)

    def judge(self, loss: float) -> bool:
        """Take note of a validation loss; whether it is the best of the run. One from before the first step is none."""
        if self.step == 0:
            return False
        best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if best:
            self.best_loss, self.best_step, self.stale_evaluations = loss, self.step, 0
        else:
            self.stale_evaluations += 1
        return best

    def lost_patience(self, patience: int | None) -> str | None:
        """Why to stop if --patience is used up."""
        if patience is None or self.stale_evaluations < patience:
            return None
        best = "" if self.best_loss is None else f" than {self.best_loss:.3f} at step {self.best_step:,}"
        return f"no better validation loss{best} in {self.stale_evaluations} evaluations (--patience {patience})"

    def batch_number(self, step: int) -> int:
        """Which global batch of the order of the data step `step` (from 0) trains on."""
        number = step
        for left_out in sorted(self.left_out):
            number += left_out <= number
        return number


def check_identity(state: RunState, identity: dict[str, Any], source: object, *, at_once: int) -> None:
    """Refuse to continue a run with another corpus, model or batch; the message lists what differs.

    `at_once`: rows that all processes take in one micro-batch, to say how the batch can be kept.
    """
    different = [f"{name}: {then} then, {now} now" for name, then, now in _differences(state.identity, identity)]
    if different:
        batch = state.identity.get("train_batch_size")
        keep = ""
        if batch and batch != identity.get("train_batch_size") and batch % at_once == 0:
            keep = f" and with --set gradient_accumulation_steps={batch // at_once}, which keeps its batch"
        raise UserError(
            f"{source} belongs to another run ({'; '.join(different)}): start with the same data and "
            f"flags{keep}, or give another --output"
        )


def check_config(state: RunState, ds_config: dict[str, Any], source: object, *, accept: bool) -> list[str]:
    """Judge a JSON that differs from the one the run was trained with; returns a line for each harmless difference.

    UserError lists what would change the training, unless it is accepted (--accept_changes). The number of processes,
    of micro-batches and the ZeRO stage may change: the global batch and the order of the data stay.
    """
    said, refused, mend = [], [], ", or --accept_changes to go on with the new ones"
    for key, then, now in _differences(dict(_flat(state.ds_config)), dict(_flat(ds_config))):
        line = f"{key}: {then} then, {now} now"
        if key in _NEVER:
            refused.append(line)
            mend = ""
        elif key in _TOLD or (accept and not key.startswith(_HARMLESS)):
            said.append(line)
        elif not key.startswith(_HARMLESS):
            refused.append(line)
    if refused:
        raise UserError(
            f"{source} was trained with another configuration ({'; '.join(refused)}): give the old values "
            f"or another --output{mend}"
        )
    return said


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(set(then) | set(now)):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of the innermost values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

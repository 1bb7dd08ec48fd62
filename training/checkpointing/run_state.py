"""How far a run has come, and what a continued run must share with the interrupted one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices, ConfigDict, Field

from common.errors import UserError
from common.records import Count, Number, Record
from evaluation.run_settings import ONLY_SHOWN, flat

# Of the DeepSpeed JSON: what changes how a step is computed or shown, but not what it computes
_HARMLESS = (
    *ONLY_SHOWN,
    "gradient_accumulation_steps",
    "zero_optimization",
    "zero_allow_",
    "zero_force_",
    "compile",
    "autotuning",
    "optimizer.params.torch_adam",
    "optimizer.params.fused",
    "optimizer.params.foreach",
)
# Another optimizer has other states, which no checkpoint of this one holds
_NEVER = ("optimizer.type",)
# Reported when it differs: a run may be made longer, and the balancing loss is that of a micro-batch
_REPORTED = ("scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps", "train_micro_batch_size_per_gpu")


class RunState(Record):
    """How far a run has come; saved as JSON in every checkpoint.

    `identity` and `ds_config` (resolved) are what it is trained with. `evals_since_best` counts evaluations since the
    best one; `alarms` names those that have been raised. `seconds` is time spent in steps, `wall_seconds` all time of
    all sessions, set-up included; `pace` is the seconds a step took in the last session, evaluations and saves
    included. `done` holds the step at which the evaluation and the sample were last made, so that what an interruption
    left undone is made up for; `finished` says that nothing is left. `skipped_batches` are numbers of global batches
    that a rollback has taken out of the order of the data. `kernels` are the operations that it computes with fused
    kernels, whose bits are not those of the plain ones. `tracker_id` is what W&B and Comet know the run by.

    An alias is the key in checkpoints of earlier versions.
    """

    model_config = ConfigDict(frozen=False)

    step: Count = 0
    total_steps: Count | None = None
    best_loss: Number | None = None
    best_step: Count | None = None
    evals_since_best: Count = Field(default=0, validation_alias=AliasChoices("evals_since_best", "stale_evaluations"))
    seconds: Number = 0.0
    wall_seconds: Number = 0.0
    save_seconds: Number = 0.0
    pace: Number | None = None
    alarms: list[str] = Field(default_factory=list)
    done: dict[str, Count] = Field(default_factory=dict)
    skipped_batches: list[Count] = Field(
        default_factory=list, validation_alias=AliasChoices("skipped_batches", "left_out")
    )
    rollbacks: Count = 0
    kernels: list[str] = Field(default_factory=list)
    tracker_id: str = ""
    finished: bool = False
    identity: dict[str, Any] = Field(default_factory=dict)
    ds_config: dict[str, Any] = Field(default_factory=dict)

    def update_best(self, loss: float) -> bool:
        """Take note of a validation loss; return whether it is the best of the run.

        An evaluation before the first step does not count.
        """
        if self.step == 0:
            return False
        best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if best:
            self.best_loss, self.best_step, self.evals_since_best = loss, self.step, 0
        else:
            self.evals_since_best += 1
        return best

    def early_stopping(self, patience: int | None) -> str | None:
        """Return why to stop if --patience is used up."""
        if patience is None or self.evals_since_best < patience:
            return None
        best = "" if self.best_loss is None else f" than {self.best_loss:.3f} at step {self.best_step:,}"
        return f"no better validation loss{best} in {self.evals_since_best} evaluations (--patience {patience})"

    def batch_number(self, step: int) -> int:
        """Return which global batch of the order of the data step `step` (from 0) trains on."""
        number = step
        for skipped in sorted(self.skipped_batches):
            number += skipped <= number
        return number


def check_identity(state: RunState, identity: dict[str, Any], source: object, *, at_once: int) -> None:
    """Raise UserError for a run of another corpus, model or batch; the message lists what differs.

    `at_once`: sequences that all processes take in one micro-batch, to say how the global batch can be kept.
    """
    different = [f"{name}: {then} then, {now} now" for name, then, now in _differences(state.identity, identity)]
    if different:
        batch = state.identity.get("train_batch_size")
        keep = ""
        if batch and batch != identity.get("train_batch_size") and batch % at_once == 0:
            keep = f" and with --set gradient_accumulation_steps={batch // at_once}, which keeps its global batch"
        raise UserError(
            f"{source} belongs to another run ({'; '.join(different)}): start with the same data and "
            f"flags{keep}, or give another --output"
        )


def check_config(state: RunState, ds_config: dict[str, Any], source: object, *, accept: bool) -> list[str]:
    """Compare the DeepSpeed JSON with the one the run was trained with; return a line for each reported difference.

    UserError lists what would change the training, unless it is accepted (--accept_changes). The number of processes,
    of micro-batches and the ZeRO stage may change: the global batch and the order of the data stay.
    """
    reported, refused, hint = [], [], ", or --accept_changes to go on with the new ones"
    for key, then, now in _differences(dict(flat(state.ds_config)), dict(flat(ds_config))):
        line = f"{key}: {then} then, {now} now"
        if key in _NEVER:
            refused.append(line)
            hint = ""
        elif key in _REPORTED or (accept and not key.startswith(_HARMLESS)):
            reported.append(line)
        elif not key.startswith(_HARMLESS):
            refused.append(line)
    if refused:
        raise UserError(
            f"{source} was trained with another configuration ({'; '.join(refused)}): give the old values "
            f"or another --output{hint}"
        )
    return reported


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(set(then) | set(now)):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)

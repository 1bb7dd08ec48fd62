"""The DeepSpeed configuration of a run: checked at once, and completed when the length of the run is known.

    draft = check(load(Path("ds_configs/t4x2.json")), facts, detect(), source="t4x2.json")   # before text is prepared
    resolved = draft.resolve(rows)                                                           # when its rows are counted
    deepspeed.initialize(config=resolved.config, ...)

A value that only the run can know is written "auto" in the file, and filled in here or in autos.py.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fractions import Fraction

from common.hardware import Device
from training.config.autos import Filler
from training.config.features import check_features, without_effect
from training.config.problems import Problems
from training.config.schema import AUTO, OWN_BLOCK, keep_known
from training.config.settings import Case, RunFacts, Settings
from training.config.validate import CHECKS, auto_warmup, check_warmup


@dataclass(frozen=True)
class Resolved(Settings):
    """What `deepspeed.initialize` gets, and how it came to be."""

    notes: list[str]
    """One line for each value that was filled in, and for each default of DeepSpeed's that surprises."""
    total_steps: int
    """Optimizer steps of the run."""


@dataclass(frozen=True)
class Draft(Case):
    """A configuration without contradictions that lacks only the length of its schedule."""

    source: str
    notes: list[str]

    def resolve(self, rows: int, steps: int | None = None) -> Resolved:
        """Return the configuration of a run over `rows` training rows, or of `steps` that were found for --budget.

        Raise UserError if the warm-up is longer than the run.
        """
        total, why = (steps, "--budget") if steps is not None else _total_steps(self.run, rows, self.train_batch)
        resolved, problems = Resolved(copy.deepcopy(self.config), [], total), Problems()
        _fill_schedule(resolved, why)
        check_warmup(resolved, total, problems)
        problems.raise_if_any(self.source)
        resolved.notes.extend(self.notes)
        end = resolved.params("scheduler").get("total_num_steps", total)
        if end != total:
            resolved.notes.append(f"scheduler.params.total_num_steps: {end:,}, but this run takes {total:,} steps")
        return resolved

    def unscheduled(self) -> Resolved:
        """Return the configuration without a schedule, to measure what a step takes before the length is known."""
        return Resolved({key: value for key, value in self.config.items() if key != "scheduler"}, self.notes, 0)


def check(config: dict, run: RunFacts, device: Device, *, source: str) -> Draft:
    """Fill in what needs no row count and raise a UserError that names everything that is wrong with `source` at once.

    `config` stays as it is, and neither files nor devices are touched.
    """
    problems = Problems()
    case = Case(keep_known({key: value for key, value in config.items() if key != OWN_BLOCK}, problems), run, device)
    notes = Filler(case, problems).fill(constant_rate="scheduler" in config and config["scheduler"] is None)
    check_features(case, problems)
    for find in CHECKS:
        find(case, problems)
    check_warmup(case, run.max_steps, problems)
    problems.raise_if_any(source)
    return Draft(case.config, run, device, source, [*notes, *without_effect(case), *_surprises(case)])


def _total_steps(run: RunFacts, rows: int, batch: int) -> tuple[int, str]:
    if run.max_steps is not None:
        return run.max_steps, f"--max_steps {run.max_steps:,}"
    # the decimal that the user wrote: 0.1 as a binary fraction is a little more, and would add a step
    total = math.ceil(Fraction(repr(float(run.epochs))) * rows / batch)
    # the data order is one endless stream of shuffled epochs, so no epoch ends in a partial batch
    return total, f"{run.epochs:g} epoch{'s' if run.epochs != 1 else ''} x {rows:,} rows / {batch:,} a step"


def _fill_schedule(resolved: Resolved, why: str) -> None:
    params, notes, total = resolved.params("scheduler"), resolved.notes, resolved.total_steps
    if params.get("total_num_steps") == AUTO:
        params["total_num_steps"] = total
        notes.append(f"scheduler.params.total_num_steps: auto -> {total:,} ({why})")
    if params.get("warmup_num_steps") == AUTO:
        end = params.get("total_num_steps", total)
        params["warmup_num_steps"] = auto_warmup(end)
        notes.append(
            f"scheduler.params.warmup_num_steps: auto -> {params['warmup_num_steps']:,} "
            f"(500, or a tenth of {end:,} steps where that is less)"
        )


def _surprises(case: Case) -> list[str]:
    """Return a note for each surprising default of DeepSpeed's, and for each value that is not what it seems."""
    notes, name, params = [], case.schedule, case.params("scheduler")
    if "scheduler" not in case.config:
        notes.append("scheduler: not written, so the learning rate is constant")
    if name.startswith("Warmup") and "warmup_type" not in params:
        notes.append('scheduler.params.warmup_type: not written, and DeepSpeed\'s default is "log", not "linear"')
    if name.startswith("Warmup") and "warmup_num_steps" not in params:
        notes.append("scheduler.params.warmup_num_steps: not written, and DeepSpeed's default is 1,000")
    if name == "WarmupDecayLR" or (name == "WarmupLR" and "warmup_max_lr" in params):
        notes.append(f"scheduler: {name} rises to {case.peak_lr:g}, its warmup_max_lr, not the optimizer's lr")
    if case.optimizer == "adam" and case.params("optimizer").get("adam_w_mode", True):
        notes.append("optimizer.type: DeepSpeed's Adam is AdamW unless optimizer.params.adam_w_mode is false")
    if case.block("bf16").get("enabled") and not case.device.bf16_fast:
        notes.append(f"bf16.enabled: {case.device.name} has no bf16 instructions; this will be slow")
    return notes

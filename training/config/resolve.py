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
from training.config import autos
from training.config.autos import ACCUMULATION, BATCH, MICRO
from training.config.features import check_features, without_effect
from training.config.problems import Problems, keep_known
from training.config.schema import AUTO, OWN_BLOCK
from training.config.validate import (
    CHECKS,
    Case,
    RunFacts,
    auto_warmup,
    check_flags,
    check_warmup,
    precision,
    warmup_steps,
)


@dataclass(frozen=True)
class Settings:
    """A DeepSpeed configuration in which all is settled but, perhaps, the length of the schedule."""

    config: dict

    @property
    def micro_batch(self) -> int:
        return self.config[MICRO]

    @property
    def accumulation(self) -> int:
        return self.config[ACCUMULATION]

    @property
    def train_batch(self) -> int:
        return self.config[BATCH]

    @property
    def precision(self) -> str:
        """One of "fp32", "fp16" and "bf16"."""
        return precision(self.config)

    @property
    def zero_stage(self) -> int:
        return self.config.get("zero_optimization", {}).get("stage", 0)

    @property
    def optimizer_name(self) -> str:
        return self.config["optimizer"]["type"]

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of the schedule; with Muon that of the matrices."""
        return _peak_lr(self.config)


@dataclass(frozen=True)
class Resolved(Settings):
    """What `deepspeed.initialize` gets, and how it came to be."""

    notes: list[str]
    """One line for each value that was filled in, and for each default of DeepSpeed's that surprises."""
    total_steps: int
    """Optimizer steps of the run."""

    @property
    def warmup_steps(self) -> int:
        return warmup_steps(self.config)


@dataclass(frozen=True)
class Draft(Settings):
    """A configuration without contradictions that lacks only the length of its schedule."""

    run: RunFacts
    device: Device
    source: str
    notes: list[str]

    def resolve(self, rows: int, steps: int | None = None) -> Resolved:
        """Return the configuration of a run over `rows` training rows, or of `steps` that were found for --budget.

        Raise UserError if the warm-up is longer than the run.
        """
        config, notes, problems = copy.deepcopy(self.config), [], Problems()
        total, why = (steps, "--budget") if steps is not None else _total_steps(self.run, rows, self.train_batch)
        _fill_schedule(config, total, why, notes)
        check_warmup(config, total, problems)
        problems.raise_if_any(self.source)
        notes += self.notes
        end = config.get("scheduler", {}).get("params", {}).get("total_num_steps", total)
        if end != total:
            notes.append(f"scheduler.params.total_num_steps: {end:,}, but this run takes {total:,} steps")
        return Resolved(config, notes, total)

    def unscheduled(self) -> Resolved:
        """Return the configuration without a schedule, to measure what a step takes before the length is known."""
        return Resolved({key: value for key, value in self.config.items() if key != "scheduler"}, self.notes, 0)


def check(config: dict, run: RunFacts, device: Device, *, source: str) -> Draft:
    """Fill in what needs no row count and raise a UserError that names everything that is wrong with `source` at once.

    `config` stays as it is, and neither files nor devices are touched.
    """
    problems, notes = Problems(), []
    check_flags(run, problems)
    work = keep_known({key: value for key, value in config.items() if key != OWN_BLOCK}, problems)
    autos.fill(work, run, device, problems, notes, constant_rate="scheduler" in config and config["scheduler"] is None)
    check_features(work, problems)
    notes += without_effect(work)
    case = Case(work, run, device)
    for find in CHECKS:
        find(case, problems)
    check_warmup(work, run.max_steps, problems)
    problems.raise_if_any(source)
    return Draft(work, run, device, source, notes + _surprises(case))


def _total_steps(run: RunFacts, rows: int, batch: int) -> tuple[int, str]:
    if run.max_steps is not None:
        return run.max_steps, f"--max_steps {run.max_steps:,}"
    # the decimal that the user wrote: 0.1 as a binary fraction is a little more, and would add a step
    total = math.ceil(Fraction(repr(float(run.epochs))) * rows / batch)
    # the data order is one endless stream of shuffled epochs, so no epoch ends in a partial batch
    return total, f"{run.epochs:g} epoch{'s' if run.epochs != 1 else ''} x {rows:,} rows / {batch:,} a step"


def _fill_schedule(config: dict, total: int, why: str, notes: list[str]) -> None:
    params = config.get("scheduler", {}).get("params", {})
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


def _peak_lr(config: dict) -> float:
    optimizer, scheduler = config["optimizer"], config.get("scheduler", {})
    params, curve = optimizer["params"], scheduler.get("params", {})
    lr = params["muon_lr"] if optimizer["type"].lower() == "muon" and "muon_lr" in params else params["lr"]
    if scheduler.get("type") in ("WarmupLR", "WarmupDecayLR"):
        lr = curve.get("warmup_max_lr", 0.001 if scheduler["type"] == "WarmupDecayLR" else lr)
    elif scheduler.get("type") == "OneCycle":
        lr = curve["cycle_max_lr"]
    return float(max(lr)) if isinstance(lr, list) else float(lr)


def _surprises(case: Case) -> list[str]:
    """Return a note for each surprising default of DeepSpeed's, and for each value that is not what it seems."""
    notes, scheduler = [], case.block("scheduler")
    name, params = scheduler.get("type", ""), scheduler.get("params", {})
    if not scheduler:
        notes.append("scheduler: not written, so the learning rate is constant")
    if name.startswith("Warmup") and "warmup_type" not in params:
        notes.append('scheduler.params.warmup_type: not written, and DeepSpeed\'s default is "log", not "linear"')
    if name.startswith("Warmup") and "warmup_num_steps" not in params:
        notes.append("scheduler.params.warmup_num_steps: not written, and DeepSpeed's default is 1,000")
    if name == "WarmupDecayLR" or (name == "WarmupLR" and "warmup_max_lr" in params):
        notes.append(f"scheduler: {name} rises to {_peak_lr(case.config):g}, its warmup_max_lr, not the optimizer's lr")
    if case.optimizer == "adam" and case.optimizer_params.get("adam_w_mode", True):
        notes.append("optimizer.type: DeepSpeed's Adam is AdamW unless optimizer.params.adam_w_mode is false")
    if case.block("bf16").get("enabled") and not case.device.bf16_fast:
        notes.append(f"bf16.enabled: {case.device.name} has no bf16 instructions; this will be slow")
    return notes

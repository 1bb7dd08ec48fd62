"""The DeepSpeed configuration of a run: checked at once, and completed when the length of the run is known.

    draft = check(load(Path("ds_configs/t4x2.json")), facts, detect(), source="t4x2.json")   # before text is prepared
    resolved = draft.resolve(rows)                                                           # when its rows are counted
    deepspeed.initialize(config=resolved.config, ...)

A value that only the run can know is written "auto" in the file, and filled in here.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fractions import Fraction

from common.hardware import Device
from training.config.problems import Problems, keep_known
from training.config.schema import AUTO, OWN_BLOCK
from training.config.validate import CHECKS, Case, RunFacts, auto_warmup, check_flags, check_warmup, warmup_steps

BATCH, MICRO, ACCUMULATION = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


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
        enabled = (name for name in ("fp16", "bf16") if self.config.get(name, {}).get("enabled", False))
        return next(enabled, "fp32")

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
    _resolve_batch(work, run, problems, notes)
    _resolve_precision(work, device, notes)
    _resolve_muon(work, device, notes)
    _resolve_monitors(work, run, notes)
    case = Case(work, run, device)
    for find in CHECKS:
        find(case, problems)
    check_warmup(work, run.max_steps, problems)
    problems.raise_if_any(source)
    return Draft(work, run, device, source, notes + _surprises(case))


def _resolve_batch(work: dict, run: RunFacts, problems: Problems, notes: list[str]) -> None:
    """Check or complete: micro-batch x accumulation x processes = batch."""
    micro, batch, accumulation = (work.get(key, AUTO) for key in (MICRO, BATCH, ACCUMULATION))
    if micro == AUTO:
        what = "missing." if MICRO not in work else f'"auto" is worked out from {BATCH}, which is not a number.'
        problems.add(MICRO, what, _micro_hint(batch, accumulation, run))
        return
    at_once = micro * run.world_size
    if batch == AUTO:
        if work.get(ACCUMULATION) == AUTO:
            what = f'"auto" is worked out from {BATCH}, which is not a number either.'
            problems.add(ACCUMULATION, what, "Write one of the two as a number.")
            return
        accumulation = work.setdefault(ACCUMULATION, 1)
        work[BATCH] = at_once * accumulation
        notes.append(f"{BATCH}: auto -> {work[BATCH]:,} ({_product(micro, accumulation, run)})")
    elif accumulation == AUTO:
        if batch % at_once:
            hint = f"Write a multiple of {at_once:,}: {_multiples(batch, at_once)}."
            problems.add(BATCH, f"{batch:,} cannot be made of {_product(micro, None, run)}.", hint)
        work[ACCUMULATION] = max(1, batch // at_once)
        notes.append(f"{ACCUMULATION}: auto -> {work[ACCUMULATION]} ({batch:,} / {_product(micro, None, run)})")
    elif batch != at_once * accumulation:
        what = f"{batch:,} is not {_product(micro, accumulation, run)} = {at_once * accumulation:,}."
        problems.add(BATCH, what, _batch_hint(batch, at_once, accumulation))


def _micro_hint(batch: int | str, accumulation: int | str, run: RunFacts) -> str:
    if isinstance(batch, int) and isinstance(accumulation, int) and batch % (accumulation * run.world_size) == 0:
        return f"Here it is {batch // (accumulation * run.world_size)}."
    return "Write the rows that one process takes at a time, e.g. 32 on a 16 GB card."


def _product(micro: int, accumulation: int | None, run: RunFacts) -> str:
    accumulated = "" if accumulation is None else f" x {accumulation:,} accumulated"
    return f"{micro:,} a process{accumulated} x {run.world_size} process{'es' if run.world_size > 1 else ''}"


def _multiples(batch: int, at_once: int) -> str:
    below = batch // at_once * at_once
    return " or ".join(f"{multiple:,}" for multiple in (below, below + at_once) if multiple)


def _batch_hint(batch: int, at_once: int, accumulation: int) -> str:
    keep = f"--set {BATCH}={at_once * accumulation} takes the batch as it comes"
    if batch % at_once:
        return f"{keep}; to keep a batch of about {batch:,}, write {_multiples(batch, at_once)}."
    return f"--set {ACCUMULATION}={batch // at_once} keeps the batch of {batch:,}; {keep}."


def _resolve_precision(work: dict, device: Device, notes: list[str]) -> None:
    bf16 = work.get("bf16", {})
    if bf16.get("enabled") == AUTO:
        bf16["enabled"] = device.bf16_fast
        why = "computes in bf16" if device.bf16_fast else "has no bf16 instructions"
        notes.append(f"bf16.enabled: auto -> {str(device.bf16_fast).lower()} ({device.name} {why})")


def _resolve_muon(work: dict, device: Device, notes: list[str]) -> None:
    """DeepSpeed's two iterations end at the same place: "standard" works in bf16, "gram" in fp16. Ours is for CPUs."""
    params = work.get("optimizer", {}).get("params", {})
    if params.get("ns_method") != AUTO:
        return
    if device.kind == "cpu":
        method, why = "polar", "the cheapest on a CPU"
    else:
        method = "standard" if device.bf16_fast else "gram"
        why = f"{device.name} {'computes in bf16' if device.bf16_fast else 'has no bf16 instructions'}"
    params["ns_method"] = method
    notes.append(f"optimizer.params.ns_method: auto -> {method} ({why})")


def _resolve_monitors(work: dict, run: RunFacts, notes: list[str]) -> None:
    """DeepSpeed writes to output_path/job_name; an empty job_name lets it write to output_path itself."""
    for name in ("tensorboard", "csv_monitor"):
        block = work.get(name, {})
        in_run = block.get("output_path") == AUTO
        if in_run:
            block["output_path"] = str(run.output / name)
            notes.append(f"{name}.output_path: auto -> {block['output_path']}")
        if block.get("job_name") == AUTO:
            block["job_name"] = "" if in_run else run.output.name
            notes.append(f'{name}.job_name: auto -> "{block["job_name"]}"')


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

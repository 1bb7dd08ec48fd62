"""The DeepSpeed configuration of a run: read, completed where the file says "auto", and judged before anything starts.

config = load(Path("ds_configs/t4x2.json"), ["optimizer.params.lr=3e-4"])
resolved = resolve(config, facts, detect(), source="ds_configs/t4x2.json")
deepspeed.initialize(config=resolved.config, ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from common.hardware import Device
from training.config.load import load, run_defaults
from training.config.problems import Problems, keep_known
from training.config.schedule import warmup_cosine_lr
from training.config.schema import AUTO, OWN_BLOCK
from training.config.validate import CHECKS, Case, RunFacts, auto_warmup, check_run, warmup_steps

__all__ = ["Resolved", "RunFacts", "load", "resolve", "run_defaults"]

_BATCH, _MICRO, _ACCUMULATION = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class Resolved:
    """What deepspeed.initialize gets, and how it came to be."""

    config: dict
    notes: list[str]
    """One line for each value that was filled in, and for each default of DeepSpeed's that surprises."""
    total_steps: int
    """Optimizer steps of the run."""

    @property
    def micro_batch(self) -> int:
        return self.config[_MICRO]

    @property
    def accumulation(self) -> int:
        return self.config[_ACCUMULATION]

    @property
    def train_batch(self) -> int:
        return self.config[_BATCH]

    @property
    def warmup_steps(self) -> int:
        return warmup_steps(self.config)

    @property
    def precision(self) -> str:
        """One of "fp32", "fp16" and "bf16"."""
        enabled = (name for name in ("fp16", "bf16") if self.config.get(name, {}).get("enabled", False))
        return next(enabled, "fp32")

    @property
    def zero_stage(self) -> int:
        return self.config.get("zero_optimization", {}).get("stage", 0)

    @property
    def gradient_clipping(self) -> float:
        """0 is no clipping."""
        return float(self.config.get("gradient_clipping", 0))

    @property
    def optimizer_name(self) -> str:
        return self.config["optimizer"]["type"]

    @property
    def peak_lr(self) -> float:
        """The highest rate of the schedule; with Muon that of the matrices."""
        return _peak_lr(self.config)

    def lr_at(self, step: int) -> float | None:
        """The rate of optimizer step `step` (from 0), None for schedules we have no closed form of."""
        if "scheduler" not in self.config:
            return self.peak_lr
        params = self.config["scheduler"].get("params", {})
        if self.config["scheduler"]["type"] != "WarmupCosineLR":
            return None
        return warmup_cosine_lr(
            step,
            peak=self.peak_lr,
            total=params["total_num_steps"],
            warmup=self.warmup_steps,
            floor_ratio=params.get("cos_min_ratio", 0.0001),  # these three defaults are DeepSpeed's
            warmup_min_ratio=params.get("warmup_min_ratio", 0.0),
            warmup_type=params.get("warmup_type", "log"),
        )


def resolve(config: dict, run: RunFacts, device: Device, *, source: str) -> Resolved:
    """Fills in every "auto" and judges the whole; a UserError names all that is wrong with `source` at once.

    Pure: `config` stays as it is, and neither files nor devices are touched.
    """
    problems, notes = Problems(), []
    check_run(run, problems)
    work = keep_known({key: value for key, value in config.items() if key != OWN_BLOCK}, problems)
    batch = _resolve_batch(work, run, problems, notes)
    _resolve_precision(work, device, notes)
    _resolve_muon(work, device, notes)
    total = _resolve_steps(work, run, batch, notes)
    _resolve_monitors(work, run, notes)
    case = Case(work, run, device, total)
    for check in CHECKS:
        check(case, problems)
    problems.raise_if_any(source)
    return Resolved(work, notes + _surprises(case), total)


def _resolve_batch(work: dict, run: RunFacts, problems: Problems, notes: list[str]) -> int:
    """Micro-batch x accumulation x processes = batch; returns the batch, or a likely one if they contradict."""
    micro, batch, accumulation = (work.get(key, AUTO) for key in (_MICRO, _BATCH, _ACCUMULATION))
    if micro == AUTO:
        problems.add(_MICRO, "missing.", _micro_mend(batch, accumulation, run))
        return 1 if batch == AUTO else batch
    if batch == AUTO:
        return _batch_from_parts(work, run, problems, notes)
    at_once = micro * run.world_size
    if accumulation == AUTO:
        if batch % at_once:
            mend = f"Write a multiple of {at_once:,}: {_multiples(batch, at_once)}."
            problems.add(_BATCH, f"{batch:,} cannot be made of {_product(micro, None, run)}.", mend)
        work[_ACCUMULATION] = max(1, batch // at_once)
        notes.append(f"{_ACCUMULATION}: auto -> {work[_ACCUMULATION]} ({batch:,} / {_product(micro, None, run)})")
    elif batch != at_once * accumulation:
        what = f"{batch:,} is not {_product(micro, accumulation, run)} = {at_once * accumulation:,}."
        problems.add(_BATCH, what, _batch_mend(batch, at_once, accumulation))
    return batch


def _micro_mend(batch: int | str, accumulation: int | str, run: RunFacts) -> str:
    if AUTO not in (batch, accumulation) and batch % (accumulation * run.world_size) == 0:
        return f"Here it is {batch // (accumulation * run.world_size)}."
    return "Write the rows that one process takes at a time, e.g. 32 on a 16 GB card."


def _batch_from_parts(work: dict, run: RunFacts, problems: Problems, notes: list[str]) -> int:
    micro = work[_MICRO]
    if work.get(_ACCUMULATION) == AUTO:
        what = f'"auto" is worked out from {_BATCH}, which is not a number either.'
        problems.add(_ACCUMULATION, what, "Write one of the two as a number.")
        work[_ACCUMULATION] = 1
    accumulation = work.setdefault(_ACCUMULATION, 1)
    work[_BATCH] = micro * accumulation * run.world_size
    notes.append(f"{_BATCH}: auto -> {work[_BATCH]:,} ({_product(micro, accumulation, run)})")
    return work[_BATCH]


def _product(micro: int, accumulation: int | None, run: RunFacts) -> str:
    accumulated = "" if accumulation is None else f" x {accumulation:,} accumulated"
    return f"{micro:,} a process{accumulated} x {run.world_size} process{'es' if run.world_size > 1 else ''}"


def _multiples(batch: int, at_once: int) -> str:
    below = batch // at_once * at_once
    return " or ".join(f"{multiple:,}" for multiple in (below, below + at_once) if multiple)


def _batch_mend(batch: int, at_once: int, accumulation: int) -> str:
    keep = f"--set {_BATCH}={at_once * accumulation} takes the batch as it comes"
    if batch % at_once:
        return f"{keep}; to keep a batch of about {batch:,}, write {_multiples(batch, at_once)}."
    return f"--set {_ACCUMULATION}={batch // at_once} keeps the batch of {batch:,}; {keep}."


def _resolve_precision(work: dict, device: Device, notes: list[str]) -> None:
    bf16 = work.get("bf16", {})
    if isinstance(bf16, dict) and bf16.get("enabled") == AUTO:
        bf16["enabled"] = device.bf16_fast
        why = "computes in bf16" if device.bf16_fast else "has no bf16 instructions"
        notes.append(f"bf16.enabled: auto -> {str(device.bf16_fast).lower()} ({device.name} {why})")


def _resolve_muon(work: dict, device: Device, notes: list[str]) -> None:
    """DeepSpeed's two iterations end at the same place: "standard" works in bf16, "gram" in fp16. Ours is for CPUs."""
    params = work.get("optimizer", {}).get("params", {})
    if not isinstance(params, dict) or params.get("ns_method") != AUTO:
        return
    if device.kind == "cpu":
        method, why = "polar", "the cheapest on a CPU"
    else:
        method = "standard" if device.bf16_fast else "gram"
        why = f"{device.name} {'computes in bf16' if device.bf16_fast else 'has no bf16 instructions'}"
    params["ns_method"] = method
    notes.append(f"optimizer.params.ns_method: auto -> {method} ({why})")


def _resolve_steps(work: dict, run: RunFacts, batch: int, notes: list[str]) -> int:
    """The length of the run in optimizer steps, written into the schedule where it asks for it."""
    total, why = _run_steps(run, batch)
    params = work.get("scheduler", {}).get("params", {})
    if params.get("total_num_steps") == AUTO:
        params["total_num_steps"] = total
        notes.append(f"scheduler.params.total_num_steps: auto -> {total:,} ({why})")
    if params.get("warmup_num_steps") == AUTO:
        end = params.get("total_num_steps", total)
        if type(end) is not int:  # beside a type that there is not, which check_schedule reports, anything passes
            end = total
        params["warmup_num_steps"] = auto_warmup(end)
        notes.append(
            f"scheduler.params.warmup_num_steps: auto -> {params['warmup_num_steps']:,} "
            f"(500, or a tenth of {end:,} steps where that is less)"
        )
    return total


def _run_steps(run: RunFacts, batch: int) -> tuple[int, str]:
    if run.max_steps is not None:
        return max(1, run.max_steps), "--budget" if run.budget else f"--max_steps {run.max_steps:,}"
    try:
        # the decimal that the user wrote: 0.1 as a binary fraction is a little more, and would add a step
        rows = Fraction(repr(float(run.epochs))) * run.rows
    except (ValueError, OverflowError):  # check_run has reported it
        return 1, ""
    # the data order is one endless stream of shuffled epochs, so no epoch ends in a partial batch
    why = f"{run.epochs:g} epoch{'s' if run.epochs != 1 else ''} x {run.rows:,} rows / {batch:,} a step"
    return max(1, math.ceil(rows / batch)), why


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


def _peak_lr(config: dict) -> float:
    optimizer, scheduler = config["optimizer"], config.get("scheduler", {})
    params, curve = optimizer["params"], scheduler.get("params", {})
    rate = params["muon_lr"] if optimizer["type"].lower() == "muon" and "muon_lr" in params else params["lr"]
    if scheduler.get("type") in ("WarmupLR", "WarmupDecayLR"):
        rate = curve.get("warmup_max_lr", 0.001 if scheduler["type"] == "WarmupDecayLR" else rate)
    elif scheduler.get("type") == "OneCycle":
        rate = curve["cycle_max_lr"]
    return float(max(rate)) if isinstance(rate, list) else float(rate)


def _surprises(case: Case) -> list[str]:
    """Defaults of DeepSpeed's that nobody expects, and values that will not be what they seem."""
    return [*_schedule_surprises(case), *_other_surprises(case)]


def _schedule_surprises(case: Case) -> list[str]:
    if "scheduler" not in case.config:
        return ["scheduler: not written, so the learning rate is constant"]
    name, params = case.config["scheduler"]["type"], case.config["scheduler"].get("params", {})
    notes = []
    if name.startswith("Warmup") and "warmup_type" not in params:
        notes.append('scheduler.params.warmup_type: not written, and DeepSpeed\'s default is "log", not "linear"')
    if name.startswith("Warmup") and "warmup_num_steps" not in params:
        notes.append("scheduler.params.warmup_num_steps: not written, and DeepSpeed's default is 1,000")
    if name == "WarmupDecayLR" or (name == "WarmupLR" and "warmup_max_lr" in params):
        notes.append(f"scheduler: {name} rises to {_peak_lr(case.config):g}, its warmup_max_lr, not the optimizer's lr")
    end = params.get("total_num_steps", case.total_steps)
    if end != case.total_steps:
        notes.append(f"scheduler.params.total_num_steps: {end:,}, but this run takes {case.total_steps:,} steps")
    return notes


def _other_surprises(case: Case) -> list[str]:
    notes = []
    if case.optimizer == "adam" and case.optimizer_params.get("adam_w_mode", True):
        notes.append("optimizer.type: DeepSpeed's Adam is AdamW unless optimizer.params.adam_w_mode is false")
    if case.block("bf16").get("enabled") and not case.device.bf16_fast:
        notes.append(f"bf16.enabled: {case.device.name} has no bf16 instructions; this will be slow")
    return notes

"""The rules for "auto": what the run, the machine or a recipe of ds_configs/ gives, each with a note that says so.

Of the optimisation (optimizer, schedule, clipping) the recipe is the reference run's, t4x2.json, or t4x2_muon.json for
Muon; of everything else it is the file for this machine. What a recipe does not say is left to DeepSpeed's default. The
length of the schedule is filled in later, when the rows are counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from common.hardware import Device
from training.config.defaults import CONFIGS, default_config
from training.config.load import load
from training.config.problems import Problems, show
from training.config.schema import AUTO, DEEPSPEED_AUTO
from training.config.validate import RunFacts

BATCH, MICRO, ACCUMULATION = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
Note = Callable[[str, object, str], None]
_LATER = ("scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps")
_NO_RULE = (
    "optimizer.params.lr",
    "optimizer.params.muon_lr",
    "optimizer.params.adam_lr",
    "scheduler.params.cycle_min_lr",
)


class _Recipes:
    """The files whose values stand for an "auto"."""

    def __init__(self, work: dict, run: RunFacts, device: Device) -> None:
        muon = _lower_type(work) == "muon"
        self.reference_path = CONFIGS / ("t4x2_muon.json" if muon else "t4x2.json")
        self.machine_path = default_config(device, run.world_size)[0]
        self.reference, self.machine = load(self.reference_path), load(self.machine_path)

    def find(self, path: str) -> tuple[object, str]:
        """Return the recipe's value at a dotted path, or None, and why it is taken."""
        own = path.startswith(("optimizer", "scheduler", "gradient_clipping"))
        value: object = self.reference if own else self.machine
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value, f"as in ds_configs/{(self.reference_path if own else self.machine_path).name}"


def fill(
    work: dict, run: RunFacts, device: Device, problems: Problems, notes: list[str], *, constant_rate: bool
) -> None:
    """Fill in every "auto" of `work` but the length of the schedule, and an optimizer or a schedule that is missing."""
    note: Note = partial(_note, notes)
    recipes = _Recipes(work, run, device)
    _fill_batch(work, run, recipes, problems, notes)
    _fill_precision(work, device, note)
    _fill_muon(work, device, note)
    _fill_monitors(work, run, note)
    if "optimizer" not in work:
        work["optimizer"] = copy.deepcopy(recipes.reference["optimizer"])
        params = work["optimizer"]["params"]
        notes.append(f"optimizer: not written -> AdamW with lr {params['lr']:g}, {recipes.find('optimizer')[1]}")
    if "scheduler" not in work and not constant_rate:
        work["scheduler"] = copy.deepcopy(recipes.reference["scheduler"])
        why = recipes.find("scheduler")[1]
        notes.append(f"scheduler: not written -> WarmupCosineLR, {why}; --set scheduler=null is a constant rate")
    _fill_from_recipes(work, recipes, problems, note)


def _note(notes: list[str], path: str, value: object, why: str) -> None:
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else show(value)
    notes.append(f"{path}: auto -> {shown if not isinstance(value, str) or not value else value} ({why})")


def _fill_batch(work: dict, run: RunFacts, recipes: _Recipes, problems: Problems, notes: list[str]) -> None:
    """Check or complete: micro-batch x accumulation x processes = batch."""
    micro, batch, accumulation = (work.get(key, AUTO) for key in (MICRO, BATCH, ACCUMULATION))
    if micro == AUTO:
        micro, why = _auto_micro_batch(batch, accumulation, run, recipes)
        work[MICRO] = micro
        notes.append(f"{MICRO}: auto -> {micro:,} ({why})")
    at_once = micro * run.world_size
    if batch == AUTO:
        if accumulation == AUTO:
            accumulation = work[ACCUMULATION] = _auto_accumulation(at_once, recipes) if ACCUMULATION in work else 1
            notes.append(f"{ACCUMULATION}: auto -> {accumulation} ({recipes.find(BATCH)[1]})")
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


def _auto_micro_batch(batch: int | str, accumulation: int | str, run: RunFacts, recipes: _Recipes) -> tuple[int, str]:
    """Return the recipe's micro-batch, or what makes the batch that is written: at most the recipe's if it is free."""
    most, why = recipes.machine[MICRO], recipes.find(MICRO)[1]
    if isinstance(batch, int) and isinstance(accumulation, int):
        return max(1, batch // (accumulation * run.world_size)), f"{batch:,} / {_product(None, accumulation, run)}"
    if isinstance(batch, int):
        fitting = [size for size in range(1, most + 1) if batch % (size * run.world_size) == 0]
        return max(fitting, default=most), f"at most {most}, {why}, and a part of {batch:,}"
    return most, why


def _auto_accumulation(at_once: int, recipes: _Recipes) -> int:
    """Return what comes nearest to the recipe's batch."""
    batch = recipes.machine[BATCH]
    return max(1, round(batch / at_once)) if isinstance(batch, int) else recipes.machine[ACCUMULATION]


def _product(micro: int | None, accumulation: int | None, run: RunFacts) -> str:
    parts = [
        "" if micro is None else f"{micro:,} a process",
        "" if accumulation is None else f"{accumulation:,} accumulated",
        f"{run.world_size} process{'es' if run.world_size > 1 else ''}",
    ]
    return " x ".join(filter(None, parts))


def _multiples(batch: int, at_once: int) -> str:
    below = batch // at_once * at_once
    return " or ".join(f"{multiple:,}" for multiple in (below, below + at_once) if multiple)


def _batch_hint(batch: int, at_once: int, accumulation: int) -> str:
    keep = f"--set {BATCH}={at_once * accumulation} takes the batch as it comes"
    if batch % at_once:
        return f"{keep}; to keep a batch of about {batch:,}, write {_multiples(batch, at_once)}."
    return f"--set {ACCUMULATION}={batch // at_once} keeps the batch of {batch:,}; {keep}."


def _fill_precision(work: dict, device: Device, note: Note) -> None:
    """Turn bf16 on where the device computes in it, else fp16 on a GPU; never both."""
    fp16, bf16 = work.get("fp16", {}), work.get("bf16", {})
    if bf16.get("enabled") == AUTO:
        bf16["enabled"] = device.bf16_fast and fp16.get("enabled") is not True
        why = f"{device.name} {'computes in bf16' if device.bf16_fast else 'has no bf16 instructions'}"
        note("bf16.enabled", bf16["enabled"], "fp16 is on" if fp16.get("enabled") is True else why)
    if fp16.get("enabled") == AUTO:
        fp16["enabled"] = device.kind == "cuda" and device.fp16_supported and not bf16.get("enabled", False)
        note("fp16.enabled", fp16["enabled"], "bf16 is on" if bf16.get("enabled", False) else f"on {device.name}")


def _fill_muon(work: dict, device: Device, note: Note) -> None:
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
    note("optimizer.params.ns_method", method, why)


def _fill_monitors(work: dict, run: RunFacts, note: Note) -> None:
    """DeepSpeed writes to output_path/job_name; an empty job_name lets it write to output_path itself."""
    for name in ("tensorboard", "csv_monitor"):
        block = work.get(name, {})
        in_run = block.get("output_path") == AUTO
        if in_run:
            block["output_path"] = str(run.output / name)
            note(f"{name}.output_path", block["output_path"], "the run's folder")
        if block.get("job_name") == AUTO:
            block["job_name"] = "" if in_run else run.output.name
            note(f"{name}.job_name", block["job_name"], "the folder itself" if in_run else "the run's name")


def _fill_from_recipes(work: dict, recipes: _Recipes, problems: Problems, note: Note) -> None:
    params = work["optimizer"].get("params", {})
    like_recipe = _lower_type(work) in ("muon", "adam", "adamw")
    for block, key, path in list(_autos(work, "")):
        value, why = recipes.find(path)
        if path == "scheduler.params.warmup_max_lr":  # DeepSpeed's default is 0.001, whatever the optimizer's rate
            value, why = params.get("lr", params.get("muon_lr")), "the optimizer's"
        elif path.endswith(".device"):
            value, why = "none", "nothing is offloaded"
        elif path.startswith("optimizer.params.") and not like_recipe:
            value = None
        if value is not None:
            block[key] = copy.deepcopy(value)
            note(path, value, why)
        elif path in _NO_RULE:
            problems.add(path, f"no recipe has a value of it for {show(work['optimizer'].get('type'))}.", "Write it.")
            del block[key]
        else:
            del block[key]
            note(path, "not written", "DeepSpeed's default")


def _autos(block: dict, prefix: str) -> Iterator[tuple[dict, str, str]]:
    """Yield each "auto" that is left, as its block, its key in it and its dotted path."""
    for key, value in block.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _autos(value, f"{path}.")
        elif value == AUTO and path not in _LATER and not path.startswith(DEEPSPEED_AUTO):
            yield block, key, path


def _lower_type(work: dict) -> str:
    return str(work.get("optimizer", {}).get("type", "")).lower()

"""The rules for "auto": what the run, the machine or a recipe of ds_configs/ gives, each with a note that says so.

Of the optimisation (optimizer, schedule, clipping) the recipe is the reference run's, t4x2.json, or t4x2_fast.json for
Muon; of everything else it is the file for this machine. What a recipe does not say is left to DeepSpeed's default. The
length of the schedule is filled in later, when the rows are counted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from training.config.defaults import CONFIGS, default_config
from training.config.load import load
from training.config.problems import Problems, show
from training.config.schema import AUTO, DEEPSPEED_AUTO
from training.config.settings import ACCUMULATION, BATCH, MICRO, Case, Settings

_LATER = ("scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps")
_PEAK = "scheduler.params.warmup_max_lr"
_NO_RULE = (
    "optimizer.params.lr",
    "optimizer.params.muon_lr",
    "optimizer.params.adam_lr",
    "scheduler.params.cycle_min_lr",
)


class Filler:
    """Fills in every "auto" of a configuration but the length of the schedule, and what is missing altogether."""

    def __init__(self, case: Case, problems: Problems) -> None:
        self.case, self.work, self.problems = case, case.config, problems
        self.notes: list[str] = []
        self.reference_path = CONFIGS / ("t4x2_fast.json" if case.optimizer == "muon" else "t4x2.json")
        self.machine_path = default_config(case.device, case.run.world_size)[0]
        self.reference, self.machine = Settings(load(self.reference_path)), Settings(load(self.machine_path))

    def fill(self, *, constant_rate: bool) -> list[str]:
        """Change the configuration; return a note for each value. `constant_rate`: no schedule is wanted."""
        self._fill_batch()
        like = f"as in ds_configs/{self.reference_path.name}"
        if "optimizer" not in self.work:
            self.work["optimizer"] = copy.deepcopy(self.reference.block("optimizer"))
            self.notes.append(f"optimizer: not written -> AdamW with lr {self.reference.peak_lr:g}, {like}")
        if "scheduler" not in self.work and not constant_rate:
            self.work["scheduler"] = copy.deepcopy(self.reference.block("scheduler"))
            constant = "--set scheduler=null is a constant rate"
            self.notes.append(f"scheduler: not written -> WarmupCosineLR, {like}; {constant}")
        for block, key, path in list(_autos(self.work, "")):
            value, why = self._rule(path)
            if value is not None:
                self._put(block, path, value, why)
                continue
            del block[key]
            if path == _PEAK and self.case.optimizer == "muon" and self.case.schedule == "WarmupDecayLR":
                what = "one rate for all weights, and Muon has two, muon_lr and adam_lr."
                hint = (
                    "Take WarmupCosineLR, which keeps both, or write a list of a rate for each of DeepSpeed's groups: "
                    "[muon_lr, adam_lr] without experts."
                )
                self.problems.add(path, what, hint)
            elif path in _NO_RULE:
                name = show(self.case.optimizer_name or None)
                self.problems.add(path, f"no recipe has a value of it for {name}.", "Write it.")
            else:
                self.notes.append(f"{path}: auto -> not written (DeepSpeed's default)")
        return self.notes

    def _put(self, block: dict, path: str, value: object, why: str) -> None:
        """Put a value into the block in which the last key of a dotted path stands."""
        block[path.rpartition(".")[2]] = copy.deepcopy(value)
        shown = f"{value:,}" if type(value) is int else value if isinstance(value, str) and value else show(value)
        self.notes.append(f"{path}: auto -> {shown} ({why})")

    def _rule(self, path: str) -> tuple[object, str]:
        """Return what stands at a dotted path in place of "auto", None for DeepSpeed's default, and why."""
        device, params = self.case.device, self.case.params("optimizer")
        bf16 = f"{device.name} {'computes in bf16' if device.bf16_fast else 'has no bf16 instructions'}"
        if path == "bf16.enabled":
            return self._bf16, "fp16 is on" if self.case.at("fp16.enabled") is True else bf16
        if path == "fp16.enabled":
            gpu = device.kind == "cuda" and device.fp16_supported
            return gpu and not self._bf16, "bf16 is on" if self._bf16 else f"on {device.name}"
        if path == "optimizer.params.ns_method":
            if device.kind == "cpu":
                return "polar", "the cheapest on a CPU"
            # DeepSpeed's own two end at the same place: "standard" works in bf16, "gram" in fp16
            return "standard" if device.bf16_fast else "gram", bf16
        if path.endswith((".output_path", ".job_name")):
            return self._place(path)
        if path == _PEAK:  # DeepSpeed's default is 0.001 for WarmupDecayLR, and each group's own for WarmupLR
            return None if {"muon_lr", "adam_lr"} <= params.keys() else params.get("lr"), "the optimizer's"
        if path.endswith(".device"):
            return "none", "nothing is offloaded"
        if path.startswith("optimizer.params.") and self.case.optimizer not in ("muon", "adam", "adamw"):
            return None, ""
        return self._recipe(path)

    @property
    def _bf16(self) -> bool:
        """Whether bf16 is on, or is to be: where the device computes in it, and never beside fp16."""
        written = self.case.at("bf16.enabled")
        return (
            self.case.device.bf16_fast and self.case.at("fp16.enabled") is not True
            if written == AUTO
            else bool(written)
        )

    def _place(self, path: str) -> tuple[object, str]:
        """Return where a monitor writes: to output_path/job_name; an empty job_name lets it write to output_path."""
        monitor, _, key = path.partition(".")
        own = self.case.run.output / monitor
        if key == "output_path":
            return str(own), "the run's folder"
        in_run = self.case.at(f"{monitor}.output_path") in (AUTO, str(own))
        return ("", "the folder itself") if in_run else (self.case.run.output.name, "the run's name")

    def _recipe(self, path: str) -> tuple[object, str]:
        """Return the recipe's value at a dotted path, or None, and why it is taken."""
        own = path.startswith(("optimizer", "scheduler", "gradient_clipping"))
        recipe, file = (self.reference, self.reference_path) if own else (self.machine, self.machine_path)
        return recipe.at(path), f"as in ds_configs/{file.name}"

    def _fill_batch(self) -> None:
        """Complete and check: micro-batch x accumulation x processes = batch."""
        work, processes = self.work, self.case.run.world_size
        micro, batch, accumulation = (work.get(key, AUTO) for key in (MICRO, BATCH, ACCUMULATION))
        if micro == AUTO:
            micro, why = self._micro_batch(batch, accumulation)
            self._put(work, MICRO, micro, why)
        at_once = micro * processes
        if accumulation == AUTO and batch == AUTO:
            accumulation = self._accumulation(at_once) if ACCUMULATION in work else 1
            self._put(work, ACCUMULATION, accumulation, self._recipe(BATCH)[1])
        elif accumulation == AUTO:
            accumulation = max(1, batch // at_once)
            self._put(work, ACCUMULATION, accumulation, f"{batch:,} / {_product(micro, None, processes)}")
        product, whole = _product(micro, accumulation, processes), at_once * accumulation
        if batch == AUTO:
            self._put(work, BATCH, whole, product)
        elif batch != whole:
            below = batch // at_once * at_once
            multiples = " or ".join(f"{multiple:,}" for multiple in (below, below + at_once) if multiple)
            keep = f"to keep a batch of about {batch:,}, write a multiple of {at_once:,}: {multiples}"
            if batch == below:
                keep = f"--set {ACCUMULATION}={batch // at_once} keeps the batch of {batch:,}"
            hint = f"--set {BATCH}={whole} takes the batch as it comes; {keep}."
            self.problems.add(BATCH, f"{batch:,} is not {product} = {whole:,}.", hint)

    def _micro_batch(self, batch: int | str, accumulation: int | str) -> tuple[int, str]:
        """Return the recipe's micro-batch, or what makes the batch that is written: at most the recipe's if free."""
        processes, most, why = self.case.run.world_size, self.machine.micro_batch, self._recipe(MICRO)[1]
        if not isinstance(batch, int):
            return most, why
        if isinstance(accumulation, int):
            why = f"{batch:,} / {_product(None, accumulation, processes)}"
            return max(1, batch // (accumulation * processes)), why
        fitting = [size for size in range(1, most + 1) if batch % (size * processes) == 0]
        return max(fitting, default=most), f"at most {most}, {why}, and a part of {batch:,}"

    def _accumulation(self, at_once: int) -> int:
        """Return what comes nearest to the recipe's batch."""
        batch = self.machine.at(BATCH)
        return max(1, round(batch / at_once)) if isinstance(batch, int) else self.machine.accumulation


def _product(micro: int | None, accumulation: int | None, processes: int) -> str:
    parts = [
        "" if micro is None else f"{micro:,} a process",
        "" if accumulation is None else f"{accumulation:,} accumulated",
        f"{processes} process{'es' if processes > 1 else ''}",
    ]
    return " x ".join(filter(None, parts))


def _autos(block: dict, prefix: str) -> Iterator[tuple[dict, str, str]]:
    """Yield each "auto" that is left, as its block, its key in it and its dotted path."""
    for key, value in block.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _autos(value, f"{path}.")
        elif value == AUTO and path not in _LATER and not path.startswith(DEEPSPEED_AUTO):
            yield block, key, path

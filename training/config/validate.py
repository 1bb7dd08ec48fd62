"""The contradictions of a configuration: within the file, with the run's flags, and with the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.hardware import Device, dotted
from training.config import schema
from training.config.problems import Problems, show
from training.config.schema import AUTO_KEYS

LEAST_MUON_CLIP = 10
_MOST_EPOCHS = 1_000_000
# without which the schedule's constructor fails
_NEEDED: Mapping[str, Iterable[str]] = {
    "WarmupCosineLR": ("total_num_steps",),
    "WarmupDecayLR": ("total_num_steps",),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
}


@dataclass(frozen=True)
class RunFacts:
    """What only the run knows, and the file's "auto" values are made of."""

    world_size: int
    rows: int
    """Training rows of max_seq_len tokens in one epoch."""
    epochs: float
    max_steps: int | None
    output: Path
    num_experts: int
    ep_size: int
    use_moe: bool
    budget: bool = False
    """Whether `max_steps` was worked out from --budget."""


@dataclass(frozen=True)
class Case:
    """A configuration without "auto", the run and the device that it is to be right for."""

    config: dict
    run: RunFacts
    device: Device
    total_steps: int

    def block(self, name: str) -> dict:
        """A block of the file, empty if it is not written."""
        return self.config.get(name, {})

    @property
    def optimizer(self) -> str:
        """The optimizer's name in small letters, as DeepSpeed compares it."""
        return self.block("optimizer").get("type", "").lower()

    @property
    def optimizer_params(self) -> dict:
        return self.block("optimizer").get("params", {})

    @property
    def zero_stage(self) -> int:
        return self.block("zero_optimization").get("stage", 0)


def check_run(run: RunFacts, problems: Problems) -> None:
    """The flags that the "auto" values are made of."""
    if run.rows < 1:
        problems.add("--data", "there is not one full row of --max_seq_len tokens to train on.", "Give more text.")
    if schema.as_number(run.epochs) is None or not 0 < run.epochs <= _MOST_EPOCHS:
        what = f"{show(run.epochs)} is not a number above 0 and at most {_MOST_EPOCHS:,}."
        problems.add("--epochs", what, "Write e.g. --epochs 5.")
    if run.max_steps is not None and run.max_steps < 1:
        problems.add("--max_steps", f"{run.max_steps} is not at least 1.", "Leave it out to train --epochs.")


def check_precision(case: Case, problems: Problems) -> None:
    """fp16 and bf16 on devices that have them, and not both."""
    fp16, bf16 = (case.block(name).get("enabled", False) for name in ("fp16", "bf16"))
    device = case.device
    if fp16 and bf16:
        problems.add("fp16.enabled", "bf16.enabled is true as well.", "Set one of them to false.")
    if fp16 and not device.fp16_supported:
        problems.add("fp16.enabled", f"DeepSpeed refuses fp16 on {device.name}.", _instead_of_fp16(device))
    if bf16 and device.kind == "cuda" and not device.bf16_fast:
        capability = f" (compute capability {dotted(device.compute_capability)})" if device.compute_capability else ""
        problems.add(
            "bf16.enabled",
            f"{device.name}{capability} has no bf16; below 8.0 PyTorch emulates it, slowly.",
            "Use fp16 there: --set bf16.enabled=false --set fp16.enabled=true.",
        )


def _instead_of_fp16(device: Device) -> str:
    if device.kind == "cpu":
        return "Use ds_configs/cpu_x2.json, or --set fp16.enabled=false --set bf16.enabled=auto."
    if device.compute_capability and device.compute_capability[0] == 6:
        return "Use --set fp16.enabled=false, or insist with DS_ALLOW_DEPRECATED_FP16=1 in the environment."
    return "Use --set fp16.enabled=false."


def check_zero(case: Case, problems: Problems) -> None:
    """What ZeRO does not do: with experts, and without a GPU to take the load off."""
    zero, key = case.block("zero_optimization"), "zero_optimization."
    if case.zero_stage == 3:
        # besides, DeepSpeed's expert layers refuse it; a model of this size gains nothing by it
        what = "train.py reads whole weights, which ZeRO-3 takes apart, to evaluate, export and save."
        problems.add(f"{key}stage", what, "Use --set zero_optimization.stage=2.")
    if case.run.use_moe and case.zero_stage in (1, 2) and zero.get("reduce_scatter") is False:
        problems.add(f"{key}reduce_scatter", "DeepSpeed wants it true for a model with experts.", "Set it to true.")
    if case.run.use_moe and case.zero_stage == 2 and zero.get("contiguous_gradients") is False:
        mend = "Set it to true."
        problems.add(f"{key}contiguous_gradients", "ZeRO-2 wants it true for a model with experts.", mend)
    for name in ("offload_optimizer", "offload_param"):
        if case.device.kind == "cpu" and zero.get(name, {}).get("device", "none") != "none":
            what = "there is no GPU whose memory it could relieve."
            problems.add(f"{key}{name}", what, f"Take it out: --set {key}{name}=null.")


def check_optimizer(case: Case, problems: Problems) -> None:
    """That there is one, that it has a rate, and that DeepSpeed can build and run it."""
    name, params = case.optimizer, case.optimizer_params
    written = case.block("optimizer").get("type")
    if written is None:
        mend = 'Write e.g. {"type": "AdamW", "params": {"lr": 2e-4, "torch_adam": true}}; --set can change parts of it.'
        problems.add("optimizer", "missing, or without a type; there is no other place for it.", mend)
        return
    if name not in schema.DEEPSPEED_OPTIMIZERS and written not in schema.TORCH_OPTIMIZERS:
        guess = schema.nearest(written, schema.OPTIMIZER_NAMES)
        mend = f"Did you mean {guess}?" if guess else f"There are {', '.join(schema.OPTIMIZER_NAMES)}."
        problems.add("optimizer.type", f"neither DeepSpeed nor torch.optim has {show(written)}.", mend)
        return
    has_rate = "lr" in params or (name == "muon" and {"muon_lr", "adam_lr"} <= params.keys())
    if not has_rate and not problems.about(*(f"optimizer.params.{rate}" for rate in ("lr", "muon_lr", "adam_lr"))):
        problems.add("optimizer.params.lr", "missing.", "Write the peak of the schedule, e.g. 2e-4.")
    if case.zero_stage > 0 and name not in schema.ZERO_TESTED and not _untested_allowed(case):
        mend = "Set it to true to insist, or choose Adam, AdamW or Muon."
        problems.add("zero_allow_untested_optimizer", f"DeepSpeed has not tested {written} with ZeRO.", mend)
    if name in ("adam", "adamw") and not params.get("torch_adam") and not case.device.has_compiler:
        what = f"DeepSpeed's own {written} is compiled at the first start, and there is no C++ compiler here."
        problems.add("optimizer.params.torch_adam", what, "Set it to true for PyTorch's, or install g++.")


def _untested_allowed(case: Case) -> bool:
    return case.config.get("zero_allow_untested_optimizer", False)


def check_muon(case: Case, problems: Problems) -> None:
    """Muon's traps, each of which trains badly without a word."""
    if case.optimizer != "muon":
        return
    clip = case.config.get("gradient_clipping", 0)
    if 0 < clip < LEAST_MUON_CLIP:
        what = f"DeepSpeed clips what Muon has orthogonalised, a norm of about 30; {clip} ruins every step."
        problems.add("gradient_clipping", what, f"With Muon set it to 0, or to {LEAST_MUON_CLIP} at the very least.")
    emulated = case.device.kind == "cuda" and not case.device.bf16_fast
    method = case.optimizer_params.get("ns_method")
    if emulated and method in ("standard", "polar"):
        what = f'"{method}" is for bf16, which {case.device.name} only emulates.'
        problems.add("optimizer.params.ns_method", what, 'Use "gram", which is the default.')


def check_schedule(case: Case, problems: Problems) -> None:
    """A schedule that DeepSpeed has, with an end, and with a warm-up that is over before the end."""
    name = case.block("scheduler").get("type")
    if "scheduler" in case.config and name not in schema.SCHEDULERS:
        guess = schema.nearest(name or "", schema.SCHEDULERS) or "WarmupCosineLR"
        mend = f"Did you mean {guess}? Or take the block out for a constant rate: --set scheduler=null."
        problems.add("scheduler.type", f"{show(name)} is none of {', '.join(schema.SCHEDULERS)}.", mend)
        return
    params = case.block("scheduler").get("params", {})
    for needed in _NEEDED.get(name, ()):
        if needed not in params:
            mend = 'Write "auto".' if f"scheduler.params.{needed}" in AUTO_KEYS else "Write it."
            problems.add(f"scheduler.params.{needed}", f"missing; {name} cannot do without.", mend)
    warmup, total = warmup_steps(case.config), params.get("total_num_steps", case.total_steps)
    if warmup >= total and warmup > 1:  # the least that "auto" gives is 1, whatever the total
        what = f"a warm-up of {warmup:,} steps in a schedule of {total:,} never comes to an end."
        mend = f'Write "auto" ({auto_warmup(total):,} here) or less than {total:,}, or train longer.'
        problems.add("scheduler.params.warmup_num_steps", what, mend)


def check_experts(case: Case, problems: Problems) -> None:
    """Experts that can be split over the processes."""
    run = case.run
    if run.ep_size < 1:
        problems.add("--ep_size", f"{run.ep_size} is not at least 1.", "1 keeps every expert on every process.")
    elif run.ep_size > 1 and not run.use_moe:
        problems.add("--ep_size", f"{run.ep_size}, but --use_moe false has no experts.", "Use --ep_size 1.")
    elif run.use_moe and run.num_experts % run.ep_size:
        what = f"{run.num_experts} experts cannot be split evenly over {run.ep_size} processes."
        problems.add("--ep_size", what, f"It can be {_divisors_of_both(run)}.")
    elif run.world_size % run.ep_size:
        what = f"{run.world_size} process{'es' if run.world_size > 1 else ''} cannot form groups of {run.ep_size}."
        problems.add("--ep_size", what, f"It can be {_divisors_of_both(run)}, or start more processes.")


def _divisors_of_both(run: RunFacts) -> str:
    most = min(run.world_size, run.num_experts)
    fitting = [size for size in range(1, most + 1) if run.world_size % size == 0 == run.num_experts % size]
    return " or ".join(map(str, fitting))


CHECKS: tuple[Callable[[Case, Problems], None], ...] = (
    check_precision,
    check_zero,
    check_optimizer,
    check_muon,
    check_schedule,
    check_experts,
)


def warmup_steps(config: dict) -> int:
    """The warm-up of the file's schedule in optimizer steps; 0 without one."""
    scheduler = config.get("scheduler", {})
    if not scheduler.get("type", "").startswith("Warmup"):
        return 0
    return scheduler.get("params", {}).get("warmup_num_steps", 1000)  # DeepSpeed's default


def auto_warmup(total: int) -> int:
    """The origin's 500 steps, or a tenth of a shorter run."""
    return max(1, min(500, total // 10))

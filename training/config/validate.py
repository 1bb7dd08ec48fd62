"""Contradictions in a configuration: within the file, with the run's flags, and with the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from common.hardware import Device, dotted
from training.config import schema
from training.config.problems import Problems, show
from training.config.schema import AUTO
from training.config.settings import Case, Settings

LEAST_MUON_CLIP = 10
_GPU_ONLY = ("lamb", "lion")
_NOT_WITH_ZERO = ("adagrad", "asgd", "nadam")
# without which the schedule's constructor fails
_NEEDED: Mapping[str, Iterable[str]] = {
    "WarmupCosineLR": ("total_num_steps",),
    "WarmupDecayLR": ("total_num_steps",),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
}


def check_precision(case: Case, problems: Problems) -> None:
    """Check that not both of fp16 and bf16 are on, and that the device has the one that is."""
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
    """Check for what ZeRO does not do with experts, or without a GPU."""
    zero, key = case.block("zero_optimization"), "zero_optimization."
    if case.zero_stage == 3:
        # besides, DeepSpeed's expert layers refuse it; a model of this size gains nothing by it
        what = "train.py reads whole weights, which ZeRO-3 takes apart, to evaluate, export and save."
        problems.add(f"{key}stage", what, "Use --set zero_optimization.stage=2.")
    if case.run.model.use_moe and case.zero_stage in (1, 2) and zero.get("reduce_scatter") is False:
        problems.add(f"{key}reduce_scatter", "DeepSpeed wants it true for a model with experts.", "Set it to true.")
    if case.run.model.use_moe and case.zero_stage == 2 and zero.get("contiguous_gradients") is False:
        hint = "Set it to true."
        problems.add(f"{key}contiguous_gradients", "ZeRO-2 wants it true for a model with experts.", hint)


def check_gradients(case: Case, problems: Problems) -> None:
    """Check for what DeepSpeed asserts of the gradients' types, sums and norm."""
    zero, types, experts = case.block("zero_optimization"), case.block("data_types"), case.run.model.use_moe
    if case.zero_stage == 2 and zero.get("reduce_scatter", True):
        what = f"ZeRO-2 cannot do it with reduce_scatter{', which experts need' if experts else ''}."
        for name, neutral in (("prescale_gradients", False), ("gradient_predivide_factor", 1)):
            if case.config.get(name, neutral) != neutral:
                problems.add(name, what, "Take it out, or use ZeRO-1: --set zero_optimization.stage=1.")
    if types.get("param_dtype", case.precision) != case.precision:
        problems.add("data_types.param_dtype", f"the file trains in {case.precision}.", "Take it out.")
    if case.zero_stage == 0 and types.get("grad_accum_dtype", case.precision) != case.precision:
        what = f"without ZeRO DeepSpeed sums gradients in the file's precision, {case.precision}."
        problems.add("data_types.grad_accum_dtype", what, "Take it out, or use ZeRO.")
    masters = "bf16_master_weights_and_grads", "bf16_optimizer_states"
    if case.block("bf16").get(masters[0], False) != case.block("bf16").get(masters[1], False):
        what = f"DeepSpeed wants both or neither of {' and '.join(masters)} where nothing is offloaded."
        problems.add(f"bf16.{masters[0]}", what, "Set both to true to save memory, or take both out.")
    if zero.get("compute_grad_norm", True) is False and case.config.get("gradient_clipping", 0):
        what = "gradient_clipping needs the norm."
        problems.add("zero_optimization.compute_grad_norm", what, "Set it to true, or gradient_clipping to 0.")


def check_optimizer(case: Case, problems: Problems) -> None:
    """Check that there is an optimizer with a learning rate, and that DeepSpeed can build and run it."""
    name, params = case.optimizer, case.params("optimizer")
    written = case.block("optimizer").get("type")
    if written is None:
        hint = 'Write e.g. {"type": "AdamW", "params": {"lr": 2e-4, "torch_adam": true}}; --set can change parts of it.'
        problems.add("optimizer", "missing, or without a type; there is no other place for it.", hint)
        return
    known = schema.keys()
    if name not in known.any_case and written not in known.as_spelled:
        names = known.optimizer_names()
        guess = schema.nearest(written, names)
        hint = f"Did you mean {guess}?" if guess else f"There are {', '.join(names)}."
        problems.add("optimizer.type", f"neither DeepSpeed nor torch.optim has {show(written)}.", hint)
        return
    has_lr = "lr" in params or (name == "muon" and {"muon_lr", "adam_lr"} <= params.keys())
    if not has_lr and not problems.about(*(f"optimizer.params.{key}" for key in ("lr", "muon_lr", "adam_lr"))):
        problems.add("optimizer.params.lr", "missing.", "Write the peak of the schedule, e.g. 2e-4.")
    allowed = name in schema.ZERO_TESTED or case.config.get("zero_allow_untested_optimizer", False)
    if case.zero_stage > 0 and not allowed:
        hint = "Set it to true to use it all the same, or choose Adam, AdamW or Muon."
        problems.add("zero_allow_untested_optimizer", f"DeepSpeed has not tested {written} with ZeRO.", hint)
    if name in _NOT_WITH_ZERO and case.zero_stage > 0:
        what = f"{written}'s state cannot be spread over processes."
        problems.add("optimizer.type", what, "Use --set zero_optimization.stage=0, or another optimizer.")
    if name in _GPU_ONLY and case.device.kind == "cpu":
        problems.add("optimizer.type", f"DeepSpeed has no {written} for a CPU.", "Use AdamW or Muon here.")
    if name.startswith("mu") and name != "muon":
        what = f"{written} scales by widths that only a model made with the package mup has."
        problems.add("optimizer.type", what, f"Use {written[2:]} or Muon.")
    if name in ("adam", "adamw") and not params.get("torch_adam") and not case.device.has_compiler:
        what = f"DeepSpeed's own {written} is compiled at the first start, and there is no C++ compiler here."
        problems.add("optimizer.params.torch_adam", what, "Set it to true for PyTorch's, or install g++.")


def check_muon(case: Case, problems: Problems) -> None:
    """Check for the settings with which Muon trains badly without an error."""
    if case.optimizer != "muon":
        return
    clip = case.config.get("gradient_clipping", 0)
    if 0 < clip < LEAST_MUON_CLIP:
        what = f"DeepSpeed clips what Muon has orthogonalised, a norm of about 30; {clip} ruins every step."
        problems.add("gradient_clipping", what, f"With Muon set it to 0, or to {LEAST_MUON_CLIP} at the very least.")
    if {"lr", "muon_lr", "adam_lr"} <= case.params("optimizer").keys():
        what = "without effect, as muon_lr (the matrices) and adam_lr (the rest) are written."
        alone = "--set optimizer.params.muon_lr=null optimizer.params.adam_lr=null"
        problems.add("optimizer.params.lr", what, f"Set these two instead, or take them out for one rate: {alone}.")
    emulated = case.device.kind == "cuda" and not case.device.bf16_fast
    method = case.params("optimizer").get("ns_method")
    if emulated and method in ("standard", "polar"):
        what = f'"{method}" is for bf16, which {case.device.name} only emulates.'
        problems.add("optimizer.params.ns_method", what, 'Use "gram", which is the default.')


def check_schedule(case: Case, problems: Problems) -> None:
    """Check that DeepSpeed has the schedule, and that what its constructor needs is there."""
    written, known = case.block("scheduler").get("type"), schema.keys().schedules
    name = written or ""
    if "scheduler" in case.config and name not in known:
        guess = schema.nearest(name, known) or "WarmupCosineLR"
        hint = f"Did you mean {guess}? Or take the block out for a constant learning rate: --set scheduler=null."
        problems.add("scheduler.type", f"{show(written)} is none of {', '.join(known)}.", hint)
        return
    params = case.params("scheduler")
    for needed in _NEEDED.get(name, ()):
        if needed not in params:
            hint = 'Write "auto".' if needed == "total_num_steps" else "Write it."
            problems.add(f"scheduler.params.{needed}", f"missing; {name} needs it.", hint)


def check_warmup(settings: Settings, total: int | None, problems: Problems) -> None:
    """Check that the warm-up is over before the end; `total` steps are the run's, None while they are not known."""
    warmup, end = settings.warmup_steps, settings.params("scheduler").get("total_num_steps", AUTO)
    end = total if end == AUTO else end
    # an "auto" is filled in to fit; the least that it gives is 1, whatever the total
    if isinstance(warmup, int) and isinstance(end, int) and warmup >= end and warmup > 1:
        what = f"a warm-up of {warmup:,} steps in a schedule of {end:,} never comes to an end."
        hint = f'Write "auto" ({auto_warmup(end):,} here) or less than {end:,}, or train longer.'
        problems.add("scheduler.params.warmup_num_steps", what, hint)


def check_experts(case: Case, problems: Problems) -> None:
    """Check that the experts can be split over the processes; the model has checked that they can be split at all."""
    model, world = case.run.model, case.run.world_size
    if model.ep_size > 1 and not model.use_moe:
        problems.add("--ep_size", f"{model.ep_size}, but --use_moe false has no experts.", "Use --ep_size 1.")
    elif world % model.ep_size:
        what = f"{world} process{'es' if world > 1 else ''} cannot form groups of {model.ep_size}."
        fitting = [size for size in range(1, world + 1) if world % size == 0 == model.num_experts % size]
        hint = f"It can be {' or '.join(map(str, fitting))}, or start more processes."
        problems.add("--ep_size", what, hint)


CHECKS: tuple[Callable[[Case, Problems], None], ...] = (
    check_precision,
    check_zero,
    check_gradients,
    check_optimizer,
    check_muon,
    check_schedule,
    check_experts,
)


def auto_warmup(total: int) -> int:
    """Return the warm-up of the reference run, 500 steps, or a tenth of a shorter run."""
    return max(1, min(500, total // 10))

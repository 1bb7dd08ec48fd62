"""`--plan`: what a run will be, need and take, before it takes anything."""

from __future__ import annotations

from dataclasses import replace

from common.hardware import Device, peak_flops
from model import ModelConfig, count_parameters
from training.config.resolve import Resolved, RunFacts
from training.planning.flops import training_flops_per_token
from training.planning.memory import ROUTING_IMBALANCE, MemoryEstimate, ModelStates, estimate_memory, memory_moments

PLANNED_T4X2 = Device(
    kind="cuda",
    count=2,
    name="Tesla T4",
    memory_bytes=15_095 * 2**20,  # of the board's 15,360 MiB, what PyTorch finds with error correction on
    compute_capability=(7, 5),
    bf16_fast=False,
    fp16_supported=True,
    has_compiler=True,
    peak_flops=peak_flops("Tesla T4"),
)
"""Two T4s as on Kaggle, to plan for them on a machine without."""

_RUNTIME = {"cuda": 600 * 2**20, "cpu": 500 * 2**20}
"""Bytes a process assumed for what is no tensor: CUDA context, cuBLAS, NCCL; on CPU Python and its libraries."""
_ROUNDING = {"cuda": 0.05, "cpu": 0.0}
"""Share assumed to be lost in the caching allocator's gaps."""
_MICRO, _ACCUMULATION = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def plan_lines(
    config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device, *, seq_len: int, utilisation: float
) -> list[str]:
    """One printed line a fact; hours are counted at `utilisation` (0 to 1) of the device's datasheet peak."""
    return [
        *_size_lines(config, resolved, facts, seq_len),
        *_memory_lines(config, resolved, facts, device, seq_len),
        *_time_lines(config, resolved, facts, device, seq_len, utilisation),
    ]


def _size_lines(config: ModelConfig, resolved: Resolved, facts: RunFacts, seq_len: int) -> list[str]:
    total, active = count_parameters(config)
    kind = f"{config.num_experts} experts, {config.num_experts_per_tok} a token" if config.use_moe else "dense"
    batch, steps, micro = resolved.train_batch, resolved.total_steps, resolved.micro_batch
    at_once = micro * facts.world_size
    return [
        _line(
            "model",
            f"{total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active a token ({kind}; hidden "
            f"{config.hidden_size}, {config.num_hidden_layers} layers, vocabulary {config.vocab_size:,})",
        ),
        _line(
            "training",
            f"{resolved.precision}, ZeRO-{resolved.zero_stage}, {resolved.optimizer_name}, peak rate "
            f"{resolved.peak_lr:g}, {_processes(facts)}",
        ),
        _line("epoch", f"{facts.rows:,} rows of {seq_len} tokens = {_tokens(facts.rows * seq_len)}"),
        _line(
            "batch",
            f"{micro} rows x {resolved.accumulation} accumulated x {_processes(facts)} = {batch} rows, "
            f"{batch * seq_len:,} tokens a step",
        ),
        _line(
            "steps",
            f"{_ceil(facts.rows, batch):,} an epoch ({_ceil(facts.rows, at_once):,} micro-batches a "
            f"process), {steps:,} in all ({steps * batch / facts.rows:.3g} epochs, "
            f"{_tokens(steps * batch * seq_len)})",
        ),
        _line("warm-up", f"{resolved.warmup_steps:,} steps, {resolved.warmup_steps / steps:.1%} of the run"),
    ]


def _memory_lines(config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device, seq_len: int) -> list[str]:
    moments = memory_moments(config, resolved, world_size=facts.world_size, seq_len=seq_len, device_kind=device.kind)
    fullest = max(moments, key=lambda moment: moment.total)
    others = ", ".join(f"{moment.moment} {_bytes(moment.total)}" for moment in moments if moment is not fullest)
    return [
        _line("memory", f"of one {_unit(device)} at its fullest, the {fullest.moment} (in the {others})"),
        *_component_lines(config, resolved, facts, seq_len, fullest, *moments[1:]),
        _part(
            "total",
            fullest.total,
            _runtime_note(fullest, device)
            + ("; rough, the layers that ZeRO-3 gathers are not in it" if resolved.zero_stage == 3 else ""),
        ),
        _line("", _verdict(config, resolved, facts, device, seq_len, fullest)),
        _zero_line(config, resolved, facts, device),
    ]


def _component_lines(
    config: ModelConfig,
    resolved: Resolved,
    facts: RunFacts,
    seq_len: int,
    fullest: MemoryEstimate,
    step: MemoryEstimate,
    evaluation: MemoryEstimate,
) -> list[str]:
    zero, world = resolved.zero_stage, facts.world_size
    shared = f", 1/{world} of them (ZeRO-{zero})" if zero and world > 1 else ""
    experts = ""
    if config.use_moe and config.capacity_factor == 0:
        experts = f"; the busiest expert assumed at {ROUTING_IMBALANCE} x its even share"
    elsewhere = f", {1 / config.ep_size:.2g} of the experts" if config.use_moe and config.ep_size > 1 else ""
    return [
        _part("weights", fullest.weights, f"in {resolved.precision}{elsewhere}"),
        _part("optimizer", fullest.optimizer, f"fp32 copy and moments of {resolved.optimizer_name}{shared}"),
        _part(
            "gradients",
            fullest.gradients,
            f"accumulated{shared if zero >= 2 else ''}; {_bytes(step.gradients)} when the optimizer steps",
        ),
        _part("activations", fullest.activations, f"{resolved.micro_batch} x {seq_len} tokens{experts}"),
        _part(
            "logits",
            fullest.logits,
            f"the training loss makes them chunk by chunk and keeps none; {_bytes(evaluation.logits)} in an evaluation",
        ),
        _part("buffers", fullest.buffers, "DeepSpeed's, above all reduce_bucket_size"),
    ]


def _runtime_note(estimate: MemoryEstimate, device: Device) -> str:
    rest = _needed(estimate, device) - estimate.total
    what = "CUDA context, libraries, allocator" if device.kind == "cuda" else "Python and its libraries"
    return f"and {_bytes(rest)} for {what} (assumed)"


def _needed(estimate: MemoryEstimate, device: Device) -> int:
    """Bytes of one process, tensors and all else."""
    return int(estimate.total * (1 + _ROUNDING[device.kind])) + _RUNTIME[device.kind]


def _available(facts: RunFacts, device: Device) -> int:
    """Bytes for one process: a GPU of its own, or a share of the machine's memory."""
    return device.memory_bytes // (facts.world_size if device.kind == "cpu" else 1)


def _verdict(
    config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device, seq_len: int, fullest: MemoryEstimate
) -> str:
    needed, available = _needed(fullest, device), _available(facts, device)
    figures = f"{_bytes(needed)} of {_bytes(available)} ({device.name})"
    if needed <= available:
        close = ", but closely: the estimate is good to some 15 %" if needed > 0.85 * available else ""
        return f"fits: {figures}, {1 - needed / available:.0%} free{close}"
    return f"does NOT fit: {figures}. {_mend(config, resolved, facts, device, seq_len)}"


def _mend(config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device, seq_len: int) -> str:
    """The largest smaller micro-batch that fits, with the accumulation that keeps the batch."""
    rows = resolved.micro_batch * resolved.accumulation
    for micro in (size for size in range(resolved.micro_batch // 2, 0, -1) if rows % size == 0):
        smaller = replace(resolved, config=resolved.config | {_MICRO: micro, _ACCUMULATION: rows // micro})
        estimate = estimate_memory(
            config, smaller, world_size=facts.world_size, seq_len=seq_len, device_kind=device.kind
        )
        if _needed(estimate, device) <= _available(facts, device):
            return (
                f"Use --set {_MICRO}={micro} {_ACCUMULATION}={rows // micro}: the same {resolved.train_batch} rows "
                f"a step in {_bytes(_needed(estimate, device))}."
            )
    zero = "" if resolved.zero_stage >= 2 else " --set zero_optimization.stage=2,"
    experts = " --ep_size 2," if config.use_moe and config.ep_size == 1 and facts.world_size % 2 == 0 else ""
    return f"Not even one row at a time would: use{zero}{experts} a smaller model or a smaller --max_seq_len."


def _zero_line(config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device) -> str:
    stages = [ModelStates(config, resolved, facts.world_size, device.kind, stage=stage) for stage in (0, 1, 2)]
    sizes = " / ".join(_bytes(states.optimizer + states.accumulated) for states in stages)
    return _line("ZeRO", f"optimizer and gradients at stage 0 / 1 / 2: {sizes} a {_unit(device)}")


def _time_lines(
    config: ModelConfig, resolved: Resolved, facts: RunFacts, device: Device, seq_len: int, utilisation: float
) -> list[str]:
    per_token = training_flops_per_token(config, seq_len)
    tokens = resolved.total_steps * resolved.train_batch * seq_len
    compute = _line(
        "compute",
        f"{per_token / 1e6:,.0f} MFLOP a token forward and backward, {per_token * tokens:.2e} "
        "FLOP in all (matrix products of the model, no padding)",
    )
    peak = (device.peak_flops or {}).get(resolved.precision)
    if peak is None:
        return [
            compute,
            _line(
                "time",
                f"no datasheet peak known for {device.name}: divide {_tokens(tokens)} by the "
                "tokens/s of a short run (--max_steps 20)",
            ),
        ]
    speed = peak * facts.world_size * utilisation / per_token
    slower = ", ".join(f"{tokens / speed * factor / 3600:.1f} h at {utilisation / factor:.2g}" for factor in (2, 4, 8))
    return [
        compute,
        _line(
            "time",
            f"{tokens / speed / 3600:.1f} hours at a utilisation of {utilisation:g} of {facts.world_size} x "
            f"{peak / 1e12:g} TFLOP/s ({device.name}, {resolved.precision}, datasheet): {speed:,.0f} "
            "tokens/s",
        ),
        _line("", f"{slower}; small models stay far below the peak, and a run's log tells"),
    ]


def _line(name: str, text: str) -> str:
    return f"{name:<9} {text}"


def _part(name: str, size: int, note: str) -> str:
    return f"  {name:<12}{_bytes(size):>9}  {note}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _tokens(count: int) -> str:
    return f"{count / 1e9:.2f} G tokens" if count >= 1e9 else f"{count / 1e6:.2f} M tokens"


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _processes(facts: RunFacts) -> str:
    return f"{facts.world_size} process{'es' if facts.world_size > 1 else ''}"


def _unit(device: Device) -> str:
    return "GPU" if device.kind == "cuda" else "process"

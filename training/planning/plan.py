"""`--plan`: the size of a run, the memory it needs and the time it takes, before it is started."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from common.hardware import Device, peak_flops
from exporting.quantization import plan_line
from model import ModelConfig, count_parameters
from model.kernels import NAMES
from training.config.resolve import Resolved
from training.config.settings import ACCUMULATION, MICRO
from training.planning.flops import training_flops_per_token
from training.planning.memory import ROUTING_IMBALANCE, MemoryEstimate, memory_by_phase
from training.planning.micro_batch import (
    CLOSE,
    available_bytes,
    largest_micro_batch,
    planned_bytes,
    process_bytes,
    with_micro_batch,
)
from training.planning.model_states import ModelStates

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


@dataclass(frozen=True)
class Plan:
    """A run of `rows` training rows of `seq_len` tokens an epoch, on `world_size` processes."""

    model: ModelConfig
    resolved: Resolved
    rows: int
    device: Device
    world_size: int
    seq_len: int
    kernels: str = "plain"
    """`--kernels`; auto is planned as if the GPU took all of them."""

    def lines(self, utilisation: float) -> list[str]:
        """Return what is printed; hours are counted at `utilisation` (0 to 1) of the device's datasheet peak."""
        return [*self._size_lines(), *self._memory_lines(), *self._time_lines(utilisation)]

    @property
    def _processes(self) -> str:
        return f"{self.world_size} process{'es' if self.world_size > 1 else ''}"

    @property
    def _unit(self) -> str:
        return "GPU" if self.device.kind == "cuda" else "process"

    def _size_lines(self) -> list[str]:
        model, resolved, rows, seq_len = self.model, self.resolved, self.rows, self.seq_len
        total, active = count_parameters(model)
        kind = f"{model.num_experts} experts, {model.num_experts_per_tok} a token" if model.use_moe else "dense"
        batch, steps, micro = resolved.train_batch, resolved.total_steps, resolved.micro_batch
        micro_batches = math.ceil(rows / (micro * self.world_size))
        return [
            f"model     {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active a token ({kind}; hidden "
            f"{model.hidden_size}, {model.num_hidden_layers} layers, vocabulary {model.vocab_size:,})",
            f"export    {plan_line(model)}",
            f"training  {resolved.precision}, ZeRO-{resolved.zero_stage}, {resolved.optimizer_name}, "
            f"peak learning rate {resolved.peak_lr:g}, {self._processes}",
            f"epoch     {rows:,} rows of {seq_len} tokens = {_tokens(rows * seq_len)}",
            f"batch     {micro} rows x {resolved.accumulation} accumulated x {self._processes} = {batch} rows, "
            f"{batch * seq_len:,} tokens a step",
            f"steps     {math.ceil(rows / batch):,} an epoch ({micro_batches:,} micro-batches a process), "
            f"{steps:,} in all ({steps * batch / rows:.3g} epochs, {_tokens(steps * batch * seq_len)})",
            f"warm-up   {resolved.warmup_steps:,} steps, {resolved.warmup_steps / steps:.1%} of the run",
        ]

    def _memory(self, kernels: tuple[str, ...]) -> list[MemoryEstimate]:
        return memory_by_phase(
            self.model,
            self.resolved,
            world_size=self.world_size,
            seq_len=self.seq_len,
            device_kind=self.device.kind,
            kernels=kernels,
        )

    def _memory_lines(self) -> list[str]:
        kernels = NAMES if self.kernels == "auto" and self.device.kind == "cuda" else ()
        phases, resolved = self._memory(kernels), self.resolved
        peak = _fullest(phases)
        others = ", ".join(f"{phase.phase} {_bytes(phase.total)}" for phase in phases if phase is not peak)
        rest = process_bytes(peak, self.device, self.model) - peak.total
        what = "CUDA context, libraries, allocator" if self.device.kind == "cuda" else "Python and its libraries"
        rough = "; rough, the layers that ZeRO-3 gathers are not in it" if resolved.zero_stage == 3 else ""
        stages = [
            ModelStates(self.model, resolved, self.world_size, self.device.kind, stage=stage) for stage in (0, 1, 2)
        ]
        sizes = " / ".join(_bytes(states.optimizer + states.accumulated) for states in stages)
        plain = [f"          {_bytes(_fullest(self._memory(())).total)} in all with --kernels plain"] if kernels else []
        return [
            f"memory    peak of one {self._unit}, in the {peak.phase} ({others})",
            *self._component_lines(peak, phases[1]),
            _part("total", peak.total, f"and {_bytes(rest)} for {what} (assumed){rough}"),
            *plain,
            f"          {self._verdict(peak)}",
            f"ZeRO      optimizer and gradients at stage 0 / 1 / 2: {sizes} a {self._unit}",
        ]

    def _component_lines(self, peak: MemoryEstimate, step: MemoryEstimate) -> list[str]:
        model, resolved, zero = self.model, self.resolved, self.resolved.zero_stage
        shared = f", 1/{self.world_size} of them (ZeRO-{zero})" if zero and self.world_size > 1 else ""
        experts = elsewhere = ""
        if model.use_moe and model.capacity_factor == 0:
            experts = f"; the busiest expert assumed at {ROUTING_IMBALANCE} x its even share"
        if model.use_moe and model.ep_size > 1:
            elsewhere = f", {1 / model.ep_size:.2g} of the experts"
        return [
            _part("weights", peak.weights, f"in {resolved.precision}{elsewhere}"),
            _part("optimizer", peak.optimizer, f"fp32 copy and states of {resolved.optimizer_name}{shared}"),
            _part(
                "gradients",
                peak.gradients,
                f"accumulated{shared if zero >= 2 else ''}; {_bytes(step.gradients)} in the optimizer step",
            ),
            _part("activations", peak.activations, f"{resolved.micro_batch} x {self.seq_len} tokens{experts}"),
            _part("logits", peak.logits, "the loss computes them in chunks and keeps none"),
            _part("buffers", peak.buffers, "DeepSpeed's, above all reduce_bucket_size"),
        ]

    def _verdict(self, peak: MemoryEstimate) -> str:
        needed = process_bytes(peak, self.device, self.model)
        available = available_bytes(self.device, self.world_size)
        figures = f"{_bytes(needed)} of {_bytes(available)} ({self.device.name})"
        if needed > available:
            return f"does NOT fit: {figures}. {self._hint()}"
        close = ", but closely: the estimate is good to some 15 %" if needed > CLOSE * available else ""
        return f"fits: {figures}, {1 - needed / available:.0%} free{close}"

    def _hint(self) -> str:
        """Return the largest smaller micro-batch that fits, with the accumulation that keeps the batch."""
        resolved, where = self.resolved, (self.device, self.world_size, self.seq_len)
        rows = resolved.micro_batch * resolved.accumulation
        micro = largest_micro_batch(self.model, resolved, *where, below=resolved.micro_batch)
        if micro is not None:
            smaller = replace(resolved, config=with_micro_batch(resolved.config, micro, rows))
            needed = planned_bytes(self.model, smaller, *where)
            return (
                f"Use --set {MICRO}={micro} {ACCUMULATION}={rows // micro}: the same {resolved.train_batch} rows a "
                f"step in {_bytes(needed)}."
            )
        zero = "" if resolved.zero_stage >= 2 else " --set zero_optimization.stage=2,"
        experts = " --ep_size 2," if self.model.use_moe and self.model.ep_size == 1 and self.world_size % 2 == 0 else ""
        return f"Not even one row at a time would: use{zero}{experts} a smaller model or a smaller --max_seq_len."

    def _time_lines(self, utilisation: float) -> list[str]:
        per_token = training_flops_per_token(self.model, self.seq_len)
        tokens = self.resolved.total_steps * self.resolved.train_batch * self.seq_len
        compute = (
            f"compute   {per_token / 1e6:,.0f} MFLOP a token forward and backward, {per_token * tokens:.2e} "
            "FLOP in all (matrix products of the model, no padding)"
        )
        peak = (self.device.peak_flops or {}).get(self.resolved.precision)
        if peak is None:
            return [
                compute,
                f"time      no datasheet peak known for {self.device.name}: divide {_tokens(tokens)} by the tokens/s "
                "of a short run (--max_steps 20)",
            ]
        speed = peak * self.world_size * utilisation / per_token
        hours = tokens / speed / 3600
        slower = ", ".join(f"{hours * factor:.1f} h at {utilisation / factor:.2g}" for factor in (2, 4, 8))
        return [
            compute,
            f"time      {hours:.1f} hours at a utilisation of {utilisation:g} of {self.world_size} x {peak / 1e12:g} "
            f"TFLOP/s ({self.device.name}, {self.resolved.precision}, datasheet): {speed:,.0f} tokens/s",
            f"          {slower}; small models stay far below the peak, and a run's log tells",
        ]


def _fullest(phases: list[MemoryEstimate]) -> MemoryEstimate:
    return max(phases, key=lambda phase: phase.total)


def _part(name: str, size: int, note: str) -> str:
    return f"  {name:<12}{_bytes(size):>9}  {note}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _tokens(count: int) -> str:
    return f"{count / 1e9:.2f} G tokens" if count >= 1e9 else f"{count / 1e6:.2f} M tokens"

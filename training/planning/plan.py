"""`--plan`: the size of a run, the memory it needs and the time it takes, before it is started."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from common.hardware import Device, peak_flops
from exporting.quantization import plan_line
from model import count_parameters
from model.kernels import NAMES
from training.config.resolve import Resolved
from training.config.settings import ACCUMULATION, MICRO
from training.planning.expected_loss import TOKENS_A_PARAMETER, FittedLaw, best_size, worth
from training.planning.flops import training_flops_per_token
from training.planning.memory import ROUTING_IMBALANCE, MemoryEstimate
from training.planning.micro_batch import CLOSE, Memory, with_micro_batch
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
    """A run of `rows` training rows an epoch."""

    resolved: Resolved
    rows: int
    memory: Memory
    kernels: str = "plain"
    """`--kernels`; auto is planned as if the GPU took all of them."""
    budget: float | None = None
    """Seconds that the length of the run was worked out from."""
    from_scratch: bool = True
    """Whether the weights begin at random, as those of the runs that the expected loss comes from."""

    def lines(self, utilisation: float) -> list[str]:
        """Return what is printed; hours are counted at `utilisation` (0 to 1) of the device's datasheet peak."""
        return [*self._size_lines(), *self._memory_lines(), *self._time_lines(utilisation), *self._loss_lines()]

    def _size_lines(self) -> list[str]:
        model, resolved, rows, seq_len = self.memory.model, self.resolved, self.rows, self.memory.seq_len
        total, active = count_parameters(model)
        kind = f"{model.num_experts} experts, {model.num_experts_per_tok} a token" if model.use_moe else "dense"
        batch, steps, micro, world = (
            resolved.train_batch,
            resolved.total_steps,
            resolved.micro_batch,
            self.memory.processes,
        )
        processes = f"{world} process{'es' if world > 1 else ''}"
        return [
            f"model     {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active a token ({kind}; hidden "
            f"{model.hidden_size}, {model.num_hidden_layers} layers, vocabulary {model.vocab_size:,})",
            f"export    {plan_line(model)}",
            f"training  {resolved.precision}, ZeRO-{resolved.zero_stage}, {resolved.optimizer_name}, "
            f"peak learning rate {resolved.peak_lr:g}, {processes}",
            *(f"          {note}" for note in resolved.notes),
            f"epoch     {rows:,} rows of {seq_len} tokens = {_tokens(rows * seq_len)}",
            f"batch     {micro} rows x {resolved.accumulation} accumulated x {processes} = {batch} rows, "
            f"{batch * seq_len:,} tokens a step",
            f"steps     {math.ceil(rows / batch):,} an epoch ({math.ceil(rows / (micro * world)):,} micro-batches a "
            f"process), {steps:,} in all ({steps * batch / rows:.3g} epochs, {_tokens(steps * batch * seq_len)})",
            f"warm-up   {resolved.warmup_steps:,} steps, {resolved.warmup_steps / steps:.1%} of the run",
        ]

    def _memory_lines(self) -> list[str]:
        memory, resolved, device = self.memory, self.resolved, self.memory.device
        kernels = NAMES if self.kernels == "auto" and device.kind == "cuda" else ()
        phases = memory.phases(resolved, kernels)
        peak = _fullest(phases)
        others = ", ".join(f"{phase.phase} {_bytes(phase.total)}" for phase in phases if phase is not peak)
        unit, what = "process", "Python and its libraries"
        if device.kind == "cuda":
            unit, what = "GPU", "CUDA context, libraries, allocator"
        plain = _bytes(_fullest(memory.phases(resolved)).total)
        zero = resolved.block("zero_optimization")
        stages = [
            replace(resolved, config=resolved.config | {"zero_optimization": zero | {"stage": stage}})
            for stage in (0, 1, 2)
        ]
        states = [ModelStates(memory.model, other, memory.processes, device.kind) for other in stages]
        sizes = " / ".join(_bytes(each.optimizer + each.accumulated) for each in states)
        return [
            f"memory    peak of one {unit}, in the {peak.phase} ({others})",
            *self._component_lines(peak, phases[1]),
            _part("total", peak.total, f"and {_bytes(memory.with_all_else(peak) - peak.total)} for {what} (assumed)"),
            *([f"          {plain} in all with --kernels plain"] if kernels else []),
            f"          {self._verdict(memory.with_all_else(peak))}",
            f"ZeRO      optimizer and gradients at stage 0 / 1 / 2: {sizes} a {unit}",
        ]

    def _component_lines(self, peak: MemoryEstimate, step: MemoryEstimate) -> list[str]:
        model, resolved, zero, world = self.memory.model, self.resolved, self.resolved.zero_stage, self.memory.processes
        shared = f", 1/{world} of them (ZeRO-{zero})" if zero and world > 1 else ""
        experts = elsewhere = ""
        if model.use_moe and model.capacity_factor == 0:
            experts = f"; the busiest expert assumed at {ROUTING_IMBALANCE} x its even share"
        if model.use_moe and model.ep_size > 1:
            elsewhere = f", {1 / model.ep_size:.2g} of the experts"
        later = f"; {_bytes(step.gradients)} in the optimizer step"
        return [
            _part("weights", peak.weights, f"in {resolved.precision}{elsewhere}"),
            _part("optimizer", peak.optimizer, f"fp32 copy and states of {resolved.optimizer_name}{shared}"),
            _part("gradients", peak.gradients, f"accumulated{shared if zero >= 2 else ''}{later}"),
            _part("activations", peak.activations, f"{resolved.micro_batch} x {self.memory.seq_len} tokens{experts}"),
            _part("logits", peak.logits, "the loss computes them in chunks and keeps none"),
            _part("buffers", peak.buffers, "DeepSpeed's, above all reduce_bucket_size"),
        ]

    def _verdict(self, needed: int) -> str:
        available = self.memory.available
        figures = f"{_bytes(needed)} of {_bytes(available)} ({self.memory.device.name})"
        if needed > available:
            return f"does NOT fit: {figures}. {self._hint()}"
        close = ", but closely: the estimate is good to some 15 %" if needed > CLOSE * available else ""
        return f"fits: {figures}, {1 - needed / available:.0%} free{close}"

    def _hint(self) -> str:
        """Return the largest smaller micro-batch that fits, with the accumulation that keeps the batch."""
        resolved, model = self.resolved, self.memory.model
        micro = self.memory.largest_micro_batch(resolved, below=resolved.micro_batch)
        if micro is not None:
            smaller = with_micro_batch(resolved, micro)
            return (
                f"Use --set {MICRO}={micro} {ACCUMULATION}={smaller.accumulation}: the same {resolved.train_batch} "
                f"rows a step in {_bytes(self.memory.needed(smaller))}."
            )
        zero = "" if resolved.zero_stage >= 2 else " --set zero_optimization.stage=2,"
        experts = " --ep_size 2," if model.use_moe and model.ep_size == 1 and self.memory.processes % 2 == 0 else ""
        return f"Not even one row at a time would: use{zero}{experts} a smaller model or a smaller --max_seq_len."

    def _time_lines(self, utilisation: float) -> list[str]:
        device, world, seq_len = self.memory.device, self.memory.processes, self.memory.seq_len
        per_token = training_flops_per_token(self.memory.model, seq_len)
        tokens = self.resolved.total_steps * self.resolved.train_batch * seq_len
        compute = (
            f"compute   {per_token / 1e6:,.0f} MFLOP a token forward and backward, {per_token * tokens:.2e} "
            "FLOP in all (matrix products of the model, no padding)"
        )
        peak = (device.peak_flops or {}).get(self.resolved.precision)
        speed = tokens_a_second(self.memory, self.resolved.precision, utilisation)
        if peak is None or speed is None:
            return [
                compute,
                f"time      no datasheet peak known for {device.name}: divide {_tokens(tokens)} by the tokens/s "
                "of a short run (--max_steps 20)",
            ]
        hours = tokens / speed / 3600
        slower = ", ".join(f"{hours * factor:.1f} h at {utilisation / factor:.2g}" for factor in (2, 4, 8))
        return [
            compute,
            f"time      {hours:.1f} hours at a utilisation of {utilisation:g} of {world} x {peak / 1e12:g} "
            f"TFLOP/s ({device.name}, {self.resolved.precision}, datasheet): {speed:,.0f} tokens/s",
            f"          {slower}; small models stay far below the peak, and a run's log tells",
        ]

    def _loss_lines(self) -> list[str]:
        """Return what loss to expect by a law fitted on natural prose, where it knows the optimizer."""
        if not self.from_scratch or self.resolved.optimizer_name.lower() not in ("muon", "adam", "adamw"):
            return []
        law, model, seq_len = FittedLaw.load(), self.memory.model, self.memory.seq_len
        text, tokens = self.rows * seq_len, self.resolved.total_steps * self.resolved.train_batch * seq_len
        size, length = count_parameters(model)[1], worth(tokens, text)
        fast, adamw = law.expect(size, length), law.expect_adamw(size, length)
        lines = [
            f"loss      {fast} bits a byte expected of prose with Muon, {adamw} with AdamW, each at the best rates "
            "tried, whatever this file's are (extended from runs of "
            f"{law.largest_parameters / 1e6:.1f} M parameters at most: docs/dev/recipes.md)"
        ]
        if self.budget is not None:
            best, text_is_short = best_size(training_flops_per_token(model, seq_len) * tokens, text)
            many = f"about {best / 1e6:.3g} M active parameters and {_tokens(round(TOKENS_A_PARAMETER * best))}"
            rule = f"Hoffmann et al.: {TOKENS_A_PARAMETER} tokens a parameter"
            lines.append(
                f"          this text, read 4 times, is enough for {many}: for more, more text is needed ({rule})"
                if text_is_short
                else f"          this budget is best spent on {many} ({rule})"
            )
        return lines


def tokens_a_second(memory: Memory, precision: str, utilisation: float) -> float | None:
    """Return the speed of all processes at a share of the device's datasheet peak, None where none is known."""
    peak = (memory.device.peak_flops or {}).get(precision)
    if peak is None:
        return None
    return peak * memory.processes * utilisation / training_flops_per_token(memory.model, memory.seq_len)


def _fullest(phases: list[MemoryEstimate]) -> MemoryEstimate:
    return max(phases, key=lambda phase: phase.total)


def _part(name: str, size: int, note: str) -> str:
    return f"  {name:<12}{_bytes(size):>9}  {note}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _tokens(count: int) -> str:
    return f"{count / 1e9:.2f} G tokens" if count >= 1e9 else f"{count / 1e6:.2f} M tokens"

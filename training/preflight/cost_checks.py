"""Checks of what the run will cost: memory at its largest batch, tokens a second, hours."""

from __future__ import annotations

import resource
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.hardware import Device
from training import sampler
from training.config.resolve import Resolved
from training.monitoring.progress import human_time
from training.preflight.report import Check, failed, passed, warned
from training.preflight.trial_engine import TrialEngine
from training.processes.process_group import any_rank

_FULL = 0.92  # of the memory; the rest is for what fragments and what others take
_STATUS = Path("/proc/self/status")


class OutOfMemory(Exception):
    """The largest batch does not fit; raised on all ranks together."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Cost:
    """Of one optimizer step's parts on the slowest rank, in seconds, and the fullest process' or host's memory."""

    micro: float
    step: float
    evaluation: float
    """Of one micro-batch."""
    peak_bytes: int
    """Of a GPU, or of all processes of the fullest host."""
    full_size: bool
    """Whether the batch was the run's own, and not a smaller one for want of time."""

    def for_rows(self, factor: float) -> Cost:
        """The same with `factor` times the rows a micro-batch."""
        return replace(self, micro=self.micro * factor, evaluation=self.evaluation * factor)


def measure(bench: TrialEngine, rows: list[int], *, full: bool, steps: int) -> Cost:
    """Some steps of one micro-batch at rate 0, the first of a size being slow, and its evaluation; collective.

    OutOfMemory where the forward pass does not fit; an allocation that fails later is left to the caller.
    """
    _reset_peak(bench.device)
    _rehearse(bench, rows)
    taken = [bench.step(rows, [0.0] * len(bench.peak)) for _ in range(steps)]
    evaluation = _evaluate(bench, rows)
    mine = (min(step.micro_seconds for step in taken), min(step.step_seconds for step in taken), evaluation)
    slowest = [max(parts) for parts in zip(*bench.gather(mine), strict=True)]
    return Cost(*slowest, peak_bytes=_peak(bench), full_size=full)


def _rehearse(bench: TrialEngine, rows: list[int]) -> None:
    """A forward pass alone: it holds all activations, and a rank that fails in it leaves no other one waiting.

    (With experts on several ranks the others do wait; the launcher then ends them.)
    """
    failure, losses = "", None
    try:
        losses = bench.engine.module(*sampler.tensors(bench.stream, rows, bench.seq_len, bench.device))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error).splitlines()[0]
    del losses
    if any_rank(bool(failure), bench.device):
        raise OutOfMemory(failure or "on another process")


@torch.no_grad()
def _evaluate(bench: TrialEngine, rows: list[int]) -> float:
    bench.engine.eval()
    started = bench.clock()
    bench.engine.module.loss_sum(*sampler.tensors(bench.stream, rows, bench.seq_len, bench.device)).item()
    bench.engine.train()
    return bench.clock() - started


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process so far
        return


def _peak(bench: TrialEngine) -> int:
    if bench.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(bench.device)
        outside = total - free - torch.cuda.memory_reserved(bench.device)  # the CUDA context, and other programs
        return max(bench.gather(torch.cuda.max_memory_reserved(bench.device) + outside))
    hosts: dict[str, int] = {}
    for host, peak in bench.gather((socket.gethostname(), _host_peak())):
        hosts[host] = hosts.get(host, 0) + peak
    return max(hosts.values())


def _host_peak() -> int:
    """Bytes that this process held at most since `_reset_peak`."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge_memory(cost: Cost, device: Device, resolved: Resolved) -> Check:
    """The largest batch, forward, backward, step and evaluation, beside what there is."""
    what = f"of {device.memory_bytes / 2**30:.1f} GiB at most, " + (
        "by all processes" if device.kind == "cpu" else "on the fullest GPU"
    )
    text = f"{cost.peak_bytes / 2**30:.2f} GiB {what}, with {resolved.micro_batch} rows a micro-batch"
    if not cost.full_size:
        return warned("memory", "not tried: the run's own batch would take too long here", "--plan estimates it")
    if cost.peak_bytes > _FULL * device.memory_bytes:
        return warned("memory", f"{text}: nearly full", smaller_batch(resolved))
    return passed("memory", text)


def judge_out_of_memory(reason: str, resolved: Resolved) -> Check:
    """The largest batch does not fit."""
    return failed(
        "memory", f"{resolved.micro_batch} rows a micro-batch do not fit ({reason[:120]})", smaller_batch(resolved)
    )


def smaller_batch(resolved: Resolved) -> str:
    """The flags of half the micro-batch, or the next smaller divisor, and the same global batch."""
    micro, accumulation = resolved.micro_batch, resolved.accumulation
    if micro == 1:
        return "a micro-batch is one row already: lower --max_seq_len, the model's sizes, or raise the ZeRO stage"
    smaller = max(size for size in range(1, micro // 2 + 1) if micro % size == 0)
    return (
        f"--set train_micro_batch_size_per_gpu={smaller} gradient_accumulation_steps="
        f"{accumulation * micro // smaller} train_batch_size={resolved.train_batch} keeps the same global batch"
    )


@dataclass(frozen=True)
class Pace:
    """What a run's length follows from."""

    total_steps: int
    tokens_per_step: int
    epochs: float | None
    """None where --max_steps decides."""
    evaluations: int
    micro_batches_an_evaluation: int


def judge_speed(cost: Cost, accumulation: int, pace: Pace, seconds_left: float | None) -> Check:
    """Tokens a second, the time to the end, and whether `seconds_left` of --time_limit are enough."""
    step = cost.micro * accumulation + cost.step
    training = step * pace.total_steps
    total = training + pace.evaluations * pace.micro_batches_an_evaluation * cost.evaluation
    text = (
        f"{pace.tokens_per_step / step:,.0f} tokens/s, {human_time(total)} for {pace.total_steps:,} steps with "
        "their evaluations"
    )
    if not cost.full_size:
        text += " (from a smaller batch)"
    if seconds_left is None or total <= seconds_left:
        limit = "" if seconds_left is None else f"; --time_limit leaves {human_time(seconds_left)}"
        return passed("speed", text + limit)
    share = max(0.0, seconds_left) / total
    shorter = (
        f"--epochs {pace.epochs * share:.2g}"
        if pace.epochs is not None
        else f"--max_steps {max(1, int(pace.total_steps * share)):,}"
    )
    would_fit = f"; {shorter} would fit" if pace.total_steps * share >= 1 else ""
    return warned(
        "speed",
        f"{text}, but --time_limit leaves {human_time(max(0.0, seconds_left))}",
        f"the run will save in time and the same command continues it{would_fit}",
    )

"""Checks of what the run will cost: memory at its largest batch, tokens a second, hours."""

from __future__ import annotations

import resource
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from common.console import human_time
from common.hardware import Device
from training import data_sampler
from training.config.resolve import Resolved
from training.preflight.report import Result, failed, passed, warned
from training.preflight.trial_engine import TrialEngine
from training.processes.process_group import gather_from_ranks

_NEARLY_FULL = 0.92  # of the memory; the rest is for fragmentation and for what others take
_STATUS = Path("/proc/self/status")


class OutOfMemory(Exception):
    """The largest batch does not fit; raised on all ranks together."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Cost:
    """Seconds of the parts of an optimizer step on the slowest rank, and the most memory in use."""

    micro: float
    """Forward and backward of one micro-batch of the run."""
    step: float
    """The optimizer step after the last micro-batch."""
    evaluation: float
    """The evaluation of one micro-batch of the run."""
    peak_bytes: int
    """The memory of the fullest GPU, or of all processes of the fullest host."""
    full_size: bool
    """Whether the batch was the run's own; the seconds are scaled up from a smaller one otherwise."""


def measure_cost(trial: TrialEngine, rows: list[int], *, full_size: bool, steps: int) -> Cost:
    """Take some steps on `rows` at learning rate 0, the first of a size being slow, and evaluate them; collective.

    Raise OutOfMemory where the forward pass does not fit; an allocation that fails later is left to the caller.
    """
    _try_forward(trial, rows)
    _reset_peak(trial.device)  # a pass alone is no part of training, and leaves its memory in pieces
    taken = [trial.step(rows) for _ in range(steps)]
    mine = (
        min(step.micro_seconds for step in taken),
        min(step.step_seconds for step in taken),
        _evaluation_seconds(trial, rows),
    )
    micro, step, evaluation = (max(seconds) for seconds in zip(*gather_from_ranks(mine), strict=True))
    scale = trial.micro_batch / len(rows)
    return Cost(micro * scale, step, evaluation * scale, _peak_bytes(trial), full_size)


def _try_forward(trial: TrialEngine, rows: list[int]) -> None:
    """Run a forward pass alone: it holds all activations, and a rank that fails in it leaves no other one waiting.

    (With experts on several ranks the others do wait; the launcher then ends them.)
    """
    failure, losses = "", None
    try:
        losses = trial.losses(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error).splitlines()[0]
    del losses
    if trial.any_rank(bool(failure)):
        raise OutOfMemory(failure or "on another process")


@torch.no_grad()
def _evaluation_seconds(trial: TrialEngine, rows: list[int]) -> float:
    trial.engine.eval()
    started = trial.clock()
    trial.engine.module.loss_sum(*data_sampler.tensors(trial.stream, rows, trial.seq_len, trial.device)).item()
    trial.engine.train()
    return trial.clock() - started


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process so far
        return


def _peak_bytes(trial: TrialEngine) -> int:
    if trial.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(trial.device)
        outside = total - free - torch.cuda.memory_reserved(trial.device)  # the CUDA context, and other programs
        return max(gather_from_ranks(torch.cuda.max_memory_reserved(trial.device) + outside))
    hosts: dict[str, int] = {}
    for host, peak in gather_from_ranks((socket.gethostname(), _process_peak_bytes())):
        hosts[host] = hosts.get(host, 0) + peak
    return max(hosts.values())


def _process_peak_bytes() -> int:
    """Return the most that this process held since `_reset_peak`."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_memory(cost: Cost, device: Device, resolved: Resolved) -> Result:
    """Check that the largest batch (forward, backward, step and evaluation) fits into the memory there is."""
    if not cost.full_size:
        return warned("not tried: the run's own batch would take too long here", "--plan estimates it")
    where = "by all processes" if device.kind == "cpu" else "on the fullest GPU"
    text = (
        f"{cost.peak_bytes / 2**30:.2f} GiB of {device.memory_bytes / 2**30:.1f} GiB at most, {where}, "
        f"with {resolved.micro_batch} rows a micro-batch"
    )
    if cost.peak_bytes > _NEARLY_FULL * device.memory_bytes:
        return warned(f"{text}: nearly full", smaller_batch(resolved))
    return passed(text)


def check_out_of_memory(reason: str, resolved: Resolved) -> Result:
    """Report that the largest batch does not fit."""
    return failed(f"{resolved.micro_batch} rows a micro-batch do not fit ({reason[:120]})", smaller_batch(resolved))


def smaller_batch(resolved: Resolved) -> str:
    """Return the flags of half the micro-batch, or the next smaller divisor, and the same global batch."""
    micro, accumulation = resolved.micro_batch, resolved.accumulation
    if micro == 1:
        return "a micro-batch is one row already: lower --max_seq_len, the model's sizes, or raise the ZeRO stage"
    smaller = max(size for size in range(1, micro // 2 + 1) if micro % size == 0)
    return (
        f"--set train_micro_batch_size_per_gpu={smaller} gradient_accumulation_steps="
        f"{accumulation * micro // smaller} train_batch_size={resolved.train_batch} keeps the same global batch"
    )


@dataclass(frozen=True)
class Workload:
    """What a run will compute."""

    steps: int
    tokens_per_step: int
    accumulation: int
    epochs: float | None
    """The number of epochs; None where --max_steps decides."""
    evaluation_micro_batches: int
    """The number for all evaluations together, on one rank."""


def check_speed(cost: Cost, workload: Workload, seconds_left: float | None) -> Result:
    """Check that `seconds_left` of --time_limit are enough for the run, and report tokens a second."""
    step = cost.micro * workload.accumulation + cost.step
    total = step * workload.steps + workload.evaluation_micro_batches * cost.evaluation
    text = (
        f"{workload.tokens_per_step / step:,.0f} tokens/s, {human_time(total)} for {workload.steps:,} steps with "
        "their evaluations"
    )
    if not cost.full_size:
        text += " (from a smaller batch)"
    if seconds_left is None:
        return passed(text)
    left = max(0.0, seconds_left)
    if total <= left:
        return passed(f"{text}; --time_limit leaves {human_time(left)}")
    share = left / total
    shorter = f"--max_steps {max(1, int(workload.steps * share)):,}"
    if workload.epochs is not None:
        shorter = f"--epochs {workload.epochs * share:.2g}"
    would_fit = f"; {shorter} would fit" if workload.steps * share >= 1 else ""
    hint = f"the run will save in time and the same command continues it{would_fit}"
    return warned(f"{text}, but --time_limit leaves {human_time(left)}", hint)

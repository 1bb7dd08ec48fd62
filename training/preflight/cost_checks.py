"""Checks of what the run will cost: memory at its largest batch, tokens a second, hours."""

from __future__ import annotations

import resource
import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from common.console import human_time
from common.hardware import Device
from training.config.resolve import Resolved
from training.evaluation.validation import evaluate
from training.preflight.report import Result, failed, passed, warned
from training.preflight.trial_engine import TrialEngine
from training.processes.process_group import gather_from_ranks

_NEARLY_FULL = 0.92  # of the memory; the rest is for fragmentation and for what others take
_FEWEST_TIMED, _MOST_TIMED = 3, 20  # steps, where there is time for more than one
_STATUS = Path("/proc/self/status")


class OutOfMemory(Exception):
    """A batch does not fit. Where this was found on all ranks together, none of them waits for another."""

    def __init__(self, why: str, *, together: bool) -> None:
        super().__init__(why)
        self.together = together


@contextmanager
def allocations() -> Iterator[None]:
    """Raise OutOfMemory for an allocation that fails on this rank, on a GPU or on the host."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory((str(error).splitlines() or ["no memory"])[0], together=False) from None


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

    def whole_step(self, accumulation: int) -> float:
        """Return the seconds of an optimizer step of `accumulation` micro-batches."""
        return accumulation * self.micro + self.step


def measure_cost(trial: TrialEngine, size: int, *, seconds: float = 0.0) -> Cost:
    """Measure steps at learning rate 0 on `size` rows, and their evaluation; collective.

    The first of a size is slow and not counted. Then comes one, or as many as fit `seconds`. Raise OutOfMemory where
    the forward pass does not fit; an allocation that fails later is left to the caller.
    """
    rows = trial.rows(size)
    _try_forward(trial, rows)
    _reset_peak(trial.device)  # a pass alone is no part of training, and leaves its memory in pieces
    trial.step(rows)
    taken, started = [], trial.clock()
    fewest, most = (_FEWEST_TIMED, _MOST_TIMED) if seconds else (1, 1)
    while len(taken) < most:
        taken.append(trial.step(trial.rows(size, batch=len(taken))))
        if trial.any_rank(len(taken) >= fewest and trial.clock() - started > seconds):
            break
    mine = (
        statistics.median(step.micro_seconds for step in taken),
        statistics.median(trial.accumulation * step.micro_seconds + step.step_seconds for step in taken),
        _evaluation_seconds(trial, rows),
    )
    micro, whole, evaluation = slowest(mine)
    # A rank that is slow in its passes waits less in the step: the slowest of each would count that wait twice.
    step, scale = max(0.0, whole - trial.accumulation * micro), trial.micro_batch / size
    return Cost(micro * scale, step, evaluation * scale, _peak_bytes(trial), full_size=scale == 1)


def slowest(seconds: tuple[float, ...]) -> list[float]:
    """Return the longest times over all ranks; collective."""
    return [max(times) for times in zip(*gather_from_ranks(seconds), strict=True)]


def _try_forward(trial: TrialEngine, rows: list[int]) -> None:
    """Run a forward pass alone: it holds all activations, and a rank that fails in it leaves no other one waiting.

    (With experts on several ranks the others do wait; the launcher then ends them.)
    """
    failure = ""
    try:
        with allocations():
            trial.losses(rows)
    except OutOfMemory as error:
        failure = str(error)
    if trial.any_rank(bool(failure)):
        raise OutOfMemory(failure or "on another process", together=True)


def _evaluation_seconds(trial: TrialEngine, rows: list[int]) -> float:
    everywhere, size, started = rows * trial.world.size, len(rows), trial.clock()
    own = {"world": trial.world, "bytes_per_token": 1.0}
    evaluate(trial.engine, trial.stream, everywhere, seq_len=trial.seq_len, micro_batch=size, **own)
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


def check_out_of_memory(reason: OutOfMemory, resolved: Resolved) -> Result:
    """Report that the largest batch does not fit."""
    text = f"{resolved.micro_batch} rows a micro-batch do not fit ({str(reason)[:120]})"
    return failed(text, smaller_batch(resolved))


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


def check_speed(
    speed: float, seconds: float, steps: int, epochs: float | None, seconds_left: float | None, *, full_size: bool
) -> Result:
    """Check that `seconds_left` of --time_limit are enough for `seconds` of `steps` at `speed` tokens a second.

    `epochs` is None where --max_steps gives the length.
    """
    text = f"{speed:,.0f} tokens/s, {human_time(seconds)} for {steps:,} steps with their evaluations"
    if not full_size:
        text += " (from a smaller batch)"
    if seconds_left is None:
        return passed(text)
    left = max(0.0, seconds_left)
    if seconds <= left:
        return passed(f"{text}; --time_limit leaves {human_time(left)}")
    share = left / seconds
    shorter = f"--max_steps {int(steps * share):,}" if epochs is None else f"--epochs {epochs * share:.2g}"
    would_fit = f"; {shorter} would fit" if steps * share >= 1 else ""
    hint = f"the run will save in time and the same command continues it{would_fit}"
    return warned(f"{text}, but --time_limit leaves {human_time(left)}", hint)

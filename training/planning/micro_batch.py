"""Which micro-batches fit into a process's memory by the plan's estimate, and the largest of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

from common.errors import UserError
from common.hardware import Device
from model import ModelConfig
from training.config.resolve import Draft
from training.config.schema import AUTO
from training.config.settings import ACCUMULATION, BATCH, MICRO, Settings
from training.planning.memory import MemoryEstimate, memory_by_phase

RUNTIME = {"cuda": 600 * 2**20, "cpu": 500 * 2**20}
"""Bytes a process assumed for what is no tensor: CUDA context, cuBLAS, NCCL; on CPU Python and its libraries."""
ROUNDING = {"cuda": 0.05, "cpu": 0.0}
"""Share assumed to be lost in the caching allocator's gaps."""
ROUNDING_ELSEWHERE = 0.15
"""The same on a GPU whose experts are split over ranks: 17 to 19 % on a null T4 (docs/dev/performance.md)."""
CLOSE = 0.85
"""A share of the memory above which the estimate, good to some 15 %, does not say for certain that it fits."""


def process_bytes(estimate: MemoryEstimate, device: Device, model: ModelConfig) -> int:
    """Return the bytes of one process, tensors and all else."""
    split = device.kind == "cuda" and model.use_moe and model.ep_size > 1
    rounding = ROUNDING_ELSEWHERE if split else ROUNDING[device.kind]
    return int(estimate.total * (1 + rounding)) + RUNTIME[device.kind]


def available_bytes(device: Device, processes: int) -> int:
    """Return the bytes for one process: a GPU of its own, or a share of the machine's memory."""
    return device.memory_bytes // (processes if device.kind == "cpu" else 1)


def with_micro_batch(config: dict, micro: int, rows: int) -> dict:
    """Return the DeepSpeed configuration with another micro-batch and the same `rows` a process and step."""
    return config | {MICRO: micro, ACCUMULATION: rows // micro}


def divisors(rows: int) -> list[int]:
    """Return the micro-batches that `rows` can be accumulated from, smallest first."""
    return [size for size in range(1, rows + 1) if rows % size == 0]


def planned_bytes(model: ModelConfig, settings: Settings, device: Device, processes: int, seq_len: int) -> int:
    """Return the bytes that one process takes at most, in whichever phase."""
    phases = memory_by_phase(model, settings, world_size=processes, seq_len=seq_len, device_kind=device.kind)
    return max(process_bytes(phase, device, model) for phase in phases)


def largest_micro_batch(
    model: ModelConfig, settings: Settings, device: Device, processes: int, seq_len: int, *, below: float = float("inf")
) -> int | None:
    """Return the largest micro-batch that surely fits and is less than `below`; the global batch stays."""
    rows = settings.micro_batch * settings.accumulation

    def needed(micro: int) -> int:
        changed = replace(settings, config=with_micro_batch(settings.config, micro, rows))
        return planned_bytes(model, changed, device, processes, seq_len)

    sizes = [size for size in divisors(rows) if size < below]
    fitting = bisect_right(sizes, CLOSE * available_bytes(device, processes), key=needed)
    return sizes[fitting - 1] if fitting else None


def fill_in_auto(
    config: dict,
    check: Callable[[dict], Draft],
    model: ModelConfig,
    device: Device,
    processes: int,
    seq_len: int,
    begun_with: int | None,
) -> Draft:
    """Return the checked configuration with the largest micro-batch that fits in place of "auto".

    `begun_with` is the micro-batch of an interrupted run, which stays what it was where it can. Where
    `train_batch_size` or the accumulation leaves nothing to choose, the usual rules of "auto" hold. Raise UserError if
    not even one row fits.
    """
    batch, accumulation = config.get(BATCH), config.get(ACCUMULATION, AUTO)
    if not isinstance(batch, int) or isinstance(accumulation, int):
        return check(config)
    draft = check(config | {MICRO: 1, ACCUMULATION: AUTO})
    rows = batch // processes
    micro, why = begun_with, "as the run began"
    if micro is None or rows % micro:
        micro = largest_micro_batch(model, draft, device, processes, seq_len)
        why = f"the largest that surely fits into the memory of {device.name}, as --plan estimates it"
    if micro is None:
        raise UserError(
            f"{MICRO}: not even one row a process surely fits into the memory of {device.name}: use a smaller model or "
            "--max_seq_len, or write a number to try it all the same"
        )
    checked = check(config | {MICRO: micro, ACCUMULATION: AUTO})
    return replace(checked, notes=[f"{MICRO}: auto -> {micro} ({why})", *checked.notes])

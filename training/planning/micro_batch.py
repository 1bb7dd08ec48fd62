"""What a run takes of a machine's memory by the plan's estimate, and the largest micro-batch that surely fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.errors import UserError
from common.hardware import Device
from model import ModelConfig
from training.config.resolve import Draft
from training.config.schema import AUTO
from training.config.settings import ACCUMULATION, BATCH, MICRO, Settings
from training.planning.memory import MemoryEstimate, memory_by_phase

_RUNTIME = {"cuda": 600 * 2**20, "cpu": 500 * 2**20}
"""Bytes a process assumed for what is no tensor: CUDA context, cuBLAS, NCCL; on CPU Python and its libraries."""
_ROUNDING = {"cuda": 0.05, "cpu": 0.0}
"""Share assumed to be lost in the caching allocator's gaps."""
_ROUNDING_ELSEWHERE = 0.15
"""The same on a GPU whose experts are split over ranks: 17 to 19 % on a null T4 (docs/dev/performance.md)."""
CLOSE = 0.85
"""A share of the memory above which the estimate, good to some 15 %, does not say for certain that it fits."""


@dataclass(frozen=True)
class Memory:
    """The memory that training a model takes on `processes` processes of a machine, and what there is."""

    model: ModelConfig
    device: Device
    processes: int
    seq_len: int

    def phases(self, settings: Settings, kernels: Sequence[str] = ()) -> list[MemoryEstimate]:
        """Return the tensors of one process in the phases that can take the most."""
        return memory_by_phase(
            self.model,
            settings,
            world_size=self.processes,
            seq_len=self.seq_len,
            device_kind=self.device.kind,
            kernels=kernels,
        )

    def with_all_else(self, phase: MemoryEstimate) -> int:
        """Return the bytes of one process, tensors and all else."""
        split = self.device.kind == "cuda" and self.model.use_moe and self.model.ep_size > 1
        rounding = _ROUNDING_ELSEWHERE if split else _ROUNDING[self.device.kind]
        return int(phase.total * (1 + rounding)) + _RUNTIME[self.device.kind]

    def needed(self, settings: Settings) -> int:
        """Return the bytes that one process takes at most, in whichever phase."""
        return max(map(self.with_all_else, self.phases(settings)))

    @property
    def available(self) -> int:
        """Bytes for one process: a GPU of its own, or a share of the machine's memory."""
        return self.device.memory_bytes // (self.processes if self.device.kind == "cpu" else 1)

    def largest_micro_batch(self, settings: Settings, below: float = float("inf")) -> int | None:
        """Return the largest micro-batch that surely fits and is less than `below`; the global batch stays."""
        rows = settings.micro_batch * settings.accumulation
        sizes = [size for size in divisors(rows) if size < below]
        fitting = bisect_right(
            sizes, CLOSE * self.available, key=lambda size: self.needed(with_micro_batch(settings, size))
        )
        return sizes[fitting - 1] if fitting else None


def with_micro_batch(settings: Settings, micro: int) -> Settings:
    """Return the configuration with another micro-batch and the same rows a process and step."""
    rows = settings.micro_batch * settings.accumulation
    return replace(settings, config=settings.config | {MICRO: micro, ACCUMULATION: rows // micro})


def divisors(rows: int) -> list[int]:
    """Return the micro-batches that `rows` can be accumulated from, smallest first."""
    return [size for size in range(1, rows + 1) if rows % size == 0]


def fill_in_auto(config: dict, check: Callable[[dict], Draft], memory: Memory, begun_with: int | None) -> Draft:
    """Return the checked configuration with the largest micro-batch that fits in place of "auto".

    `begun_with` is the micro-batch of an interrupted run, which stays what it was where it can. Where
    `train_batch_size` or the accumulation leaves nothing to choose, the usual rules of "auto" hold. Raise UserError if
    not even one row fits.
    """
    batch, accumulation = config.get(BATCH), config.get(ACCUMULATION, AUTO)
    if not isinstance(batch, int) or isinstance(accumulation, int):
        return check(config)
    micro, why = begun_with, "as the run began"
    if micro is None or (batch // memory.processes) % micro:
        micro = memory.largest_micro_batch(check(config | {MICRO: 1, ACCUMULATION: AUTO}))
        why = f"the largest that surely fits into the memory of {memory.device.name}, as --plan estimates it"
    if micro is None:
        raise UserError(
            f"{MICRO}: not even one row a process surely fits into the memory of {memory.device.name}: use a smaller "
            "model or --max_seq_len, or write a number to try it all the same"
        )
    checked = check(config | {MICRO: micro, ACCUMULATION: AUTO})
    return replace(checked, notes=[f"{MICRO}: auto -> {micro} ({why})", *checked.notes])

"""This process's place among all, and the few collectives of training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank and number of processes, from the variables that the launcher sets; one process without them."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> World:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE (DeepSpeed's) or LOCAL_WORLD_SIZE (torchrun's)."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        local = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or size
        return cls(int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)), int(local))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the all-reduced copy of a small tensor."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool | torch.Tensor, device: torch.device) -> bool:
    """Return True everywhere if `flag` is true anywhere; a flag on the device need not be read before."""
    value = torch.as_tensor(flag, device=device).float()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def gather_from_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the `value` of every rank (of a group), in their order; any object that can be pickled."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast_from_rank0(world: World, compute: Callable[[], T]) -> T:
    """Return on every rank what `compute` returns on rank 0.

    A UserError of `compute` is raised on rank 0; the other ranks raise SystemExit(2), without a message.
    """
    result: list[T] = []  # empty where `compute` fails
    error: UserError | None = None
    if world.rank == 0:
        try:
            result = [compute()]
        except UserError as caught:
            error = caught
    computed = gather_from_ranks(result)[0]
    if error:
        raise error
    if not computed:
        raise SystemExit(2)
    return computed[0]

"""This process's place among all, and the few collectives of training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import UserError
from training.processes.launchers import count_from_environment, rank_variables

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

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
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE (DeepSpeed's) or LOCAL_WORLD_SIZE (torchrun's).

        Those of mpirun and srun are taken where RANK is not set.
        """
        os.environ.update(rank_variables(os.environ))
        size = count_from_environment("WORLD_SIZE", 1, least=1)
        local = "LOCAL_SIZE" if os.environ.get("LOCAL_SIZE") else "LOCAL_WORLD_SIZE"
        local_size = count_from_environment(local, size, least=1, most=size)
        if size > 1 and not os.environ.get("RANK"):
            raise UserError(
                f"WORLD_SIZE={size} is set in the environment and RANK is not: start with deepspeed or torchrun, which "
                "set both, or unset WORLD_SIZE for one process"
            )
        rank = count_from_environment("RANK", 0, most=size - 1)
        return cls(rank, size, count_from_environment("LOCAL_RANK", 0, most=local_size - 1), local_size)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the all-reduced copy of a small tensor."""
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True everywhere if `flag` is true anywhere."""
    import torch

    return any_rank_of_each(torch.full((1,), float(flag), device=device))[0]


def any_rank_of_each(flags: torch.Tensor) -> list[bool]:
    """Return for each of `flags` (n,) whether it is above 0 on any rank; one all-reduce, and one wait for a GPU."""
    import torch.distributed as dist

    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [value > 0 for value in flags.tolist()]


def gather_from_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the `value` of every rank (of a group), in their order; any object that can be pickled."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast_from_rank0(compute: Callable[[], T]) -> T:
    """Return on every rank what `compute` returns on rank 0.

    A UserError of `compute` is raised on rank 0; the other ranks raise SystemExit(2), without a message.
    """
    import torch.distributed as dist

    result: list[T] = []  # empty where `compute` fails
    if dist.get_rank() == 0:
        try:
            result = [compute()]
        except UserError:
            gather_from_ranks(result)
            raise
    result = gather_from_ranks(result)[0]
    if not result:
        raise SystemExit(2)
    return result[0]

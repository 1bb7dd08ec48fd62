"""How a fused operation starts its Triton kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

PROGRAMS = 320
"""Programs of a kernel that adds up over all rows: a partial sum each. Fixed, so that the order of additions is."""


def launch(name: str, programs: int, *arguments: Any, warps: int = 4, **sizes: int | bool) -> None:
    """Run a kernel of `device.py` in so many programs; nothing on the meta device, where tensors are counted.

    Triton is imported here, when a kernel is wanted for the first time.
    """
    if not programs or any(isinstance(argument, Tensor) and argument.is_meta for argument in arguments):
        return
    from model.kernels import device

    getattr(device, name)[(programs,)](*arguments, num_warps=warps, **sizes)


def block(width: int) -> int:
    """Return the power of two that holds a row of `width` numbers."""
    return 1 << (width - 1).bit_length()


def rows_at_once(width: int) -> int:
    """Return how many rows of `width` numbers a program takes at a time."""
    return max(1, 1024 // block(width))


def loops(rows: int, at_once: int) -> tuple[int, int]:
    """Return (programs, loops of each) that together go over all rows, in at most PROGRAMS programs."""
    blocks = -(-rows // at_once)
    turns = 1 << max(0, -(-blocks // PROGRAMS) - 1).bit_length()  # a power of two: few sizes to compile for
    return -(-blocks // turns), turns

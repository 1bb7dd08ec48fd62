"""What a run takes on the disk, checked before it starts."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.files import free_bytes, size_of
from model import ModelConfig, count_parameters
from training.config.resolve import Resolved
from training.planning.model_states import DTYPES, parameter_split, states_of

_FP32_BYTES = 4


def checkpoint_bytes(config: ModelConfig, resolved: Resolved) -> int:
    """Return the size of all ranks' files together: fp32 master weights and the optimizer's states, also in fp32."""
    groups = parameter_split(config.for_inference(), 1, resolved)
    return sum(group.numel * _FP32_BYTES * (1 + states_of(resolved, group)) for group in groups)


def model_bytes(config: ModelConfig, resolved: Resolved) -> int:
    """Return the size of model.safetensors."""
    return count_parameters(config)[0] * DTYPES[resolved.precision].itemsize


def check_disk_space(output: Path, config: ModelConfig, resolved: Resolved, keep_last: int) -> str:
    """Return the run's needs as a line for people; UserError if what it will hold at its fullest does not fit.

    At its fullest it holds the checkpoints to keep and one being written, and the model with its successor beside it.
    """
    existing = size_of(output / "checkpoints") + size_of(output / "model")
    checkpoint, model = checkpoint_bytes(config, resolved), model_bytes(config, resolved)
    return space_line(output, checkpoint, model, keep_last, existing, free_bytes(output))


def space_line(output: Path, checkpoint: int, model: int, keep_last: int, existing: int, free: int) -> str:
    """Return the line of `check_disk_space` from sizes in bytes.

    `existing` is what a run that continues has written already.
    """
    whole = (keep_last + 1) * checkpoint + 2 * model
    needed = max(0, whole - existing)
    text = f"checkpoints of {_gb(checkpoint)}, {keep_last + 1} at most and the model: {_gb(whole)}"
    here = f", {_gb(existing)} of them written" if existing else ""
    if needed <= free:
        return f"disk: {text}{here}; {_gb(free)} free"
    fitting = (free + existing - 2 * model) // max(1, checkpoint) - 1
    fewer = f", --keep_last {fitting}" if 1 <= fitting < keep_last else ""
    raise UserError(
        f"{output}: there is too little space on its disk: {text}{here}, but only {_gb(free)} free: free "
        f"{_gb(needed - free, up=True)} more{fewer}, or another --output"
    )


def _gb(size: int, up: bool = False) -> str:
    """Return the size in units of 10^9 bytes, as disks are sold; in MB where that says more."""
    if size < 10**8:
        return f"{-(-size // 10**6) if up else size / 1e6:,.0f} MB"
    return f"{-(-size // 10**7) / 100 if up else size / 1e9:,.2f} GB"

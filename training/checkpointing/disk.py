"""Room on the disk: what a run needs, checked before it starts, and what becomes of its files when there is none.

A full disk never ends a run. What is appended (metrics, alarms, samples, TensorBoard) waits in memory and is written,
in its order, when there is room; a model or a checkpoint that does not fit leaves the one before it as it was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from common.errors import UserError
from common.files import append_whole, free_bytes, replace_bytes, sync
from model import ModelConfig, count_parameters
from training.config.resolve import Resolved
from training.planning.memory import parameter_split
from training.processes.process_group import gather_from_ranks

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MASTER_BYTES = 4
_STATES = {"sgd": 0, "adagrad": 1, "lion": 1, "muon": 2}  # of what is not Muon's own; 2, Adam's, where not named
_MODEL_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class DiskFull(Exception):
    """A file of the run could not be written. Raised on all ranks together; a reason to try again, not to stop."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.message = Path(path), f"{path} could not be written: {reason}"
        super().__init__(self.message)


def reason_of(error: OSError | SafetensorError) -> str:
    """A few words, the same for whichever library met the full disk."""
    if is_full(error):
        return "no space left on the disk"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_full(error: BaseException) -> bool:
    """Whether it is for want of room (safetensors has only a text to tell it by)."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(f"os error {known}" in str(error) for known in _FULL)


def raise_together(failure: str | None, path: Path, device: torch.device) -> None:
    """DiskFull on every rank if any of them failed to write; collective. `failure` is this rank's reason.

    The reason of the first rank that has one is told on all of them.
    """
    failures = torch.tensor(float(failure is not None), device=device)
    dist.all_reduce(failures, op=dist.ReduceOp.MAX)
    if not failures.item():
        return
    raise DiskFull(path, next(reason for reason in gather_from_ranks(failure) if reason is not None))


# --- files that grow --------------------------------------------------------------------------------------------------


class DiskNotice:
    """Tells once that the files of a run cannot be written, and once that they can again."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.waiting: set[Path] = set()

    def failed(self, path: Path, error: OSError) -> None:
        """`path` waits for room."""
        if not self.waiting:
            what = (
                f"no space left on the disk of {self.folder}"
                if is_full(error)
                else f"{self.folder} cannot be written to ({reason_of(error)})"
            )
            self.say(f"  {what}: metrics are kept in memory and written when there is room")
        self.waiting.add(path)

    def worked(self, path: Path) -> None:
        """`path` has all that was meant for it."""
        if path in self.waiting:
            self.waiting.discard(path)
            if not self.waiting:
                self.say(f"  {self.folder} can be written to again: no line of the metrics is missing")


class Appender:
    """A file that grows: whole pieces in their order, or nothing; what does not fit waits in memory for the next call.

    The file is opened for each piece, so it may be replaced by another in between.
    """

    def __init__(self, path: Path, notice: DiskNotice) -> None:
        self.path, self.notice = path, notice
        self.pending: list[bytes] = []

    def append(self, *pieces: bytes) -> bool:
        """Whether all is on its way to the disk, earlier pieces included."""
        self.pending += pieces
        return self.retry()

    def retry(self) -> bool:
        """Write what waits; the same answer."""
        if self.pending:
            try:
                append_whole(self.path, b"".join(self.pending))
            except OSError as error:
                self.notice.failed(self.path, error)
                return False
            self.pending.clear()
            self.notice.worked(self.path)
        return True

    def sync(self) -> None:
        """Have the disk hold it even if the machine goes away."""
        if self.retry() and self.path.exists():
            try:
                sync(self.path)
            except OSError as error:  # a full network disk may say so only now
                self.notice.failed(self.path, error)

    def forget(self, keep: Callable[[bytes], bool]) -> None:
        """Drop those of the waiting pieces that `keep` says no to."""
        self.pending = [piece for piece in self.pending if keep(piece)]
        if not self.pending:
            self.notice.worked(self.path)


# --- files that are replaced ------------------------------------------------------------------------------------------


def keep_whole(path: Path, data: bytes, kept: bytes) -> None:
    """Leave `kept` of a file that held `data`, whole or not at all.

    The end of a file is cut off in place: that takes no room, and is one change of its length.
    """
    if kept == data:
        return
    if data.startswith(kept):
        os.truncate(path, len(kept))
    else:
        replace_bytes(path, [kept])


def write_text(path: Path, text: str, say: Callable[[str], None]) -> bool:
    """Like `replace_bytes`, for what a run can do without: a disk that is full is told and answered with False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, [text.encode()])
    except OSError as error:
        say(f"  {path} could not be written: {reason_of(error)}")
        return False
    return True


# --- before the start -------------------------------------------------------------------------------------------------


def checkpoint_bytes(config: ModelConfig, resolved: Resolved) -> int:
    """Of all ranks' files together: the fp32 master weights and the optimizer's states, which are fp32 too."""
    name = resolved.optimizer_name.lower()
    groups = parameter_split(config.for_inference(), 1, muon=name == "muon")
    others = _STATES.get(name, 2)
    if name == "sgd" and resolved.config["optimizer"].get("params", {}).get("momentum"):
        others = 1
    return sum(group.numel * _MASTER_BYTES * (1 + (1 if group.muon else others)) for group in groups)


def model_bytes(config: ModelConfig, resolved: Resolved) -> int:
    """Of model.safetensors."""
    return count_parameters(config)[0] * _MODEL_BYTES[resolved.precision]


def check_room(
    output: Path, checkpoint: int, model: int, keep_last: int, existing: int, free: int | None = None
) -> str:
    """The line of the announcement; UserError if what the run will hold at its fullest does not fit. Sizes in bytes.

    At its fullest it holds the checkpoints to keep and one being written, and the model with its successor beside it.
    `existing` is what of that is there already (of a run that continues), `free` that of the disk unless given.
    """
    free = free_bytes(output) if free is None else free
    whole = (keep_last + 1) * checkpoint + 2 * model
    needed = max(0, whole - existing)
    text = f"checkpoints of {_gb(checkpoint)}, {keep_last + 1} at most and the model: {_gb(whole)}"
    here = f", {_gb(existing)} of them written" if existing else ""
    if needed <= free:
        return f"disk: {text}{here}; {_gb(free)} free"
    fitting = (free + existing - 2 * model) // max(1, checkpoint) - 1
    fewer = f", --keep_last {fitting}" if 1 <= fitting < keep_last else ""
    raise UserError(
        f"{output}: there is too little room on its disk: {text}{here}, but only {_gb(free)} free: free "
        f"{_gb(needed - free, up=True)} more{fewer}, or another --output"
    )


def _gb(size: int, up: bool = False) -> str:
    """Of 10^9 bytes, as disks are sold; MB where that says more."""
    if size < 10**8:
        return f"{-(-size // 10**6) if up else size / 1e6:,.0f} MB"
    return f"{-(-size // 10**7) / 100 if up else size / 1e9:,.2f} GB"

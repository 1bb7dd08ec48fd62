"""Checkpoints: whole or not there at all, read without running anything, by any number of processes.

    runs/NAME/checkpoints/
        latest                    the name of the newest, for people and tools
        step-00001000/
            run_state.json        how far the run has come; sizes and hashes of the other files, and of itself
            rank-00000.safetensors, ...   fp32 weights and optimizer states, each rank's share

A checkpoint is written beside its place, flushed to the disk, read back, and then renamed. What a run that was killed
leaves behind bears another name and is cleared away by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save as to_bytes
from torch import Tensor

from common.errors import UserError
from common.files import printable, read_text, replace_bytes, sha256_file, sync
from common.records import Count, Record, parse_record
from training.checkpointing import engine_state
from training.checkpointing.earlier_runs import STATE_FILE, checkpoints_in, find
from training.checkpointing.engine_state import EngineNumbers
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import DiskFull, NotFinite, on_all_ranks
from training.engine.internals import non_finite_weights
from training.engine.protocol import Engine

FORMAT = 2  # 1 was DeepSpeed's own files
LATEST_FILE, PARTIAL, DISCARDED = "latest", ".partial", ".discarded"
_RANK_FILE = re.compile(r"rank-(\d{5})\.safetensors")
_MOST_BYTES = 16 * 2**20  # of run_state.json, which has some kilobytes


class ShareInfo(Record):
    """The size and hash of one rank's file."""

    bytes: Count
    sha256: str


class Content(RunState):
    """What run_state.json holds: the run's state, the engine's, and the files beside it."""

    format: int
    engine: EngineNumbers
    files: dict[str, ShareInfo]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written: its folder, its size on the disk, and how long it took."""

    path: Path
    bytes: int
    seconds: float


def save(
    engine: Engine,
    folder: Path,
    state: RunState,
    keep_last: int,
    local: dict[str, Tensor],
    known_whole: Path | None = None,
) -> Saved:
    """Write checkpoint `step-N` under `folder`; a collective call. `local` are this rank's own numbers, by name.

    More than `keep_last` are cleared away before, too, counted from the one that is `known_whole`: a run that was
    killed before it could do so may have left no space for another.

    Raises NotFinite or DiskFull on every rank, with nothing changed, if the weights are not finite or a rank cannot
    write.
    """
    started = time.perf_counter()
    name = f"step-{state.step:08d}"
    partial = folder / (name + PARTIAL)
    on_all_ranks(lambda: dist.get_rank() or _empty(partial, keep_last, known_whole), partial)  # rank 0 alone
    try:
        written = on_all_ranks(lambda: _write_share(engine, partial, local), partial)
        on_all_ranks(lambda: dist.get_rank() or _commit(folder, name, state, engine, dict(written)), partial)
    except (DiskFull, NotFinite):
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if dist.get_rank() == 0:
        _prune(folder, name, keep_last)
    return Saved(folder / name, sum(info.bytes for _, info in written), time.perf_counter() - started)


def _empty(partial: Path, keep_last: int, known_whole: Path | None) -> None:
    folder = partial.parent
    before: list[Path] = []
    if known_whole and known_whole.parent.resolve() == folder.resolve():
        before = [path for path in checkpoints_in(folder) if path.name <= known_whole.name]
    for old in (*before[:-keep_last], *_leftovers(folder)):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)


def _write_share(engine: Engine, partial: Path, local: dict[str, Tensor]) -> tuple[str, ShareInfo]:
    if non_finite_weights(engine):
        raise NotFinite("the weights are not finite")
    data = to_bytes(engine_state.tensors(engine, local))
    path = partial / f"rank-{dist.get_rank():05d}.safetensors"
    path.write_bytes(data)
    sync(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256_file(path) != digest:
        raise OSError(f"{path} does not read back as it was written")
    return path.name, ShareInfo(bytes=len(data), sha256=digest)


def _commit(folder: Path, name: str, state: RunState, engine: Engine, files: dict[str, ShareInfo]) -> None:
    """Turn a folder of shares into the newest checkpoint; rank 0."""
    partial, place = folder / (name + PARTIAL), folder / name
    record = Content(format=FORMAT, **state.model_dump(), engine=engine_state.numbers(engine), files=files)
    content = record.model_dump()
    text = json.dumps(content | {"sha256": _digest(content)}, indent=2, ensure_ascii=False)
    (partial / STATE_FILE).write_text(f"{text}\n", encoding="utf-8")
    sync(partial / STATE_FILE)
    sync(partial)
    if place.exists():  # a damaged one, or one that a rollback has gone back beyond
        os.replace(place, folder / (name + DISCARDED))
    os.replace(partial, place)
    sync(folder)
    replace_bytes(folder / LATEST_FILE, [f"{name}\n".encode()])
    sync(folder)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prune(folder: Path, newest: str, keep_last: int) -> None:
    """Keep the last `keep_last` up to `newest`; the best weights are in the run's model/.

    Those with a higher step are damaged, or from before a rollback that went back before them.
    """
    line = [path for path in checkpoints_in(folder) if path.name <= newest]
    left = [path for path in checkpoints_in(folder) if path.name > newest]
    for old in (*line[:-keep_last], *left, *_leftovers(folder)):
        shutil.rmtree(old, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    return [path for suffix in (PARTIAL, DISCARDED) for path in folder.glob(f"step-*{suffix}")]


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, None if it is whole; reads all of it."""
    try:
        found = (_damage_of(checkpoint / name, info) for name, info in _read(checkpoint).files.items())
        return next(filter(None, found), None)
    except UserError as error:
        return str(error)


def _damage_of(path: Path, info: ShareInfo) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != info.bytes:
        return f"{path} has {path.stat().st_size:,} bytes instead of {info.bytes:,}"
    if sha256_file(path) != info.sha256:
        return f"{path} has changed since it was written (SHA-256 differs)"
    return None


def choose(output: Path, resume: str) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to continue from, verified, and a warning for each damaged one that was passed over.

    `resume`: the newest whole one in the run's folder (`auto`), none (`never`), or the one given, or the newest whole
    one in the folder given. UserError where that is not to be had. For one rank to ask; broadcast the answer.
    """
    candidates = find(output, resume)
    warnings = []
    for candidate in reversed(candidates):
        if (wrong := damage(candidate)) is None:
            return candidate, warnings
        warnings.append(f"{candidate} is damaged and left alone: {wrong}")
    if not candidates:
        return None, []
    raise UserError(
        f"{warnings[0]}; there is no whole checkpoint before it: delete {candidates[0].parent} to start "
        "anew, or give another --output"
    )


def _read(checkpoint: Path) -> Content:
    """Return run_state.json, checked against its own hash and for its types; UserError if it is not whole."""
    path = checkpoint / STATE_FILE
    try:
        content = json.loads(read_text(path, _MOST_BYTES))
        version = content.get("format", 1)
        if version != FORMAT:
            raise UserError(
                f"{path} was written by another version of train.py "
                f"(format {printable(repr(version), 20)}, here {FORMAT}): "
                "give another --output; its model/ can still be used"
            )
        if content.pop("sha256") != _digest(content):
            raise UserError(f"{path} has changed since it was written (SHA-256 differs)")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {printable(error)})") from None
    try:
        found = parse_record(Content, content)
    except ValueError as error:
        raise UserError(f"{path} is not what train.py writes there ({error})") from None
    if wrong := [name for name in found.files if not _RANK_FILE.fullmatch(name)]:
        raise UserError(f"{path} names a file that belongs to no checkpoint: {printable(wrong[0])!r}")
    return found


def read_state(checkpoint: Path) -> RunState:
    """Return the run's state in a checkpoint; UserError if it is damaged."""
    return RunState.model_validate(_read(checkpoint).model_dump())


@dataclass(frozen=True)
class Local:
    """What ranks gave to `save` as their own: this rank's, or on rank 0 every rank's if the split has changed."""

    states: list[dict[str, Tensor]]
    same_ranks: bool


def load(engine: Engine, checkpoint: Path) -> Local:
    """Restore weights, optimizer, loss scaler and schedule from a whole checkpoint; a collective call."""
    content = _read(checkpoint)
    files = [checkpoint / name for name in sorted(content.files)]
    same, rank = engine_state.split(engine) == content.engine.split, dist.get_rank()
    wanted = files[rank : rank + 1] if same else files if rank == 0 else []
    states = engine_state.restore(engine, files, content.engine, step=content.step, local_files=wanted)
    return Local(states, same)

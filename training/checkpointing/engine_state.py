"""A DeepSpeed engine's numbers in a file and back, whatever the number of ranks was and is.

Not DeepSpeed's own checkpoint: that one is tied to the number of processes, is read by running pickles, and its elastic
forms lose the optimizer of a model with experts (docs/dev/log.md, "Checkpoints of our own").
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import UserError
from common.records import Count, Record
from training.engine import internals
from training.engine.internals import STEP, Shard
from training.engine.protocol import Engine
from training.processes.process_group import gather_from_ranks

_LOCAL = "local"  # of this rank alone, of use only to the same rank of as many
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class EngineNumbers(Record):
    """What an engine counts, its schedule and its loss scale; the same on every rank."""

    split: dict[str, Any]
    global_steps: Count
    global_samples: Count
    skipped_steps: Count
    optimizer_steps: Count | None
    scheduler: dict[str, Any] | None
    loss_scaler: dict[str, Any]


def tensors(engine: Engine, local: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what this rank has to write, by key, as copies on the CPU; `local` is of use to this rank alone."""
    owned = {f"{part.kind}|{part.name}|{part.start}": part.values for part in internals.shards(engine) if part.owned}
    owned |= {f"{_LOCAL}|{name}|0": values for name, values in local.items()}
    return {key: values.detach().to("cpu", copy=True).contiguous() for key, values in owned.items()}


def numbers(engine: Engine) -> EngineNumbers:
    """Return the engine's counts, its schedule and its loss scale."""
    scheduler, scaler = engine.lr_scheduler, internals.loss_scaler(engine)
    return EngineNumbers(
        split=split(engine),
        global_steps=engine.global_steps,
        global_samples=engine.global_samples,
        skipped_steps=engine.skipped_steps,
        optimizer_steps=_optimizer_steps(engine),
        scheduler=None if scheduler is None else scheduler.state_dict(),
        loss_scaler={name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)},
    )


def _optimizer_steps(engine: Engine) -> int | None:
    """Return how often the optimizer has stepped, by its own count: PyTorch keeps a tensor, DeepSpeed a number."""
    counted = [int(shard.values.max()) for shard in internals.shards(engine) if shard.kind == STEP]
    return max(counted + [int(place[STEP]) for place in internals.step_counters(engine)], default=None)


def split(engine: Engine) -> dict[str, Any]:
    """Return what decides which rank holds which part of what."""
    layers = engine.module.expert_layers()
    return {
        "processes": engine.world_size,
        "ep_size": layers[0].moe.ep_size if layers else 1,
        "zero_stage": engine.zero_optimization_stage(),
    }


def restore(
    engine: Engine, files: list[Path], saved: EngineNumbers, *, step: int, local_files: list[Path]
) -> list[dict[str, Tensor]]:
    """Put `tensors` and `numbers` back into an engine; a collective call. Returns the `local` of some of the files.

    `step` is the number of optimizer steps taken. UserError if a weight or a state is missing from the files.
    """
    with ExitStack() as stack:
        stored = {path: _contents(stack.enter_context(_open(path))) for path in files}
        index: defaultdict[tuple[str, str], list[_Stored]] = defaultdict(list)
        for part in chain.from_iterable(stored.values()):
            index[part.kind, part.name].append(part)
        kinds = {kind for kind, _ in index} - {_LOCAL}
        internals.create_states(engine, kinds)
        own = internals.shards(engine)
        with torch.no_grad():
            for shard in own:
                _fill(shard, index[shard.kind, shard.name], saved.optimizer_steps or 0)
        _check_all_read(kinds, {shard.kind for shard in own})
        local = [{part.name: part.whole() for part in stored[path] if part.kind == _LOCAL} for path in local_files]
    _restore_numbers(engine, saved, step)
    internals.publish_master_weights(engine)
    return local


def _restore_numbers(engine: Engine, saved: EngineNumbers, step: int) -> None:
    for place in internals.step_counters(engine):
        place[STEP] = saved.optimizer_steps or 0
    engine.global_steps, engine.global_samples = saved.global_steps, saved.global_samples
    engine.skipped_steps = saved.skipped_steps
    engine.micro_steps = step * engine.gradient_accumulation_steps()
    scheduler, scaler = engine.lr_scheduler, internals.loss_scaler(engine)
    if scheduler is not None and saved.scheduler is not None:
        scheduler.load_state_dict(saved.scheduler)
        scheduler.step(scheduler.last_batch_iteration)  # the same place again, which sets the learning rate
    for name, value in saved.loss_scaler.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


@dataclass(frozen=True)
class _Stored:
    """Elements `start` to `end` of `kind` of a parameter, under `key` in an open file; `end` is 0 for what is local."""

    kind: str
    name: str
    start: int
    end: int
    file: Any
    key: str

    def whole(self) -> Tensor:
        return self.file.get_tensor(self.key)

    def part(self, first: int, last: int) -> Tensor:
        """Return elements `first` to `last` of the parameter."""
        return self.file.get_slice(self.key)[first - self.start : last - self.start]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete its folder to continue from the checkpoint before it"
        ) from None


def _contents(file: Any) -> list[_Stored]:
    """Return what is in an open file; UserError if it is none of `tensors`."""
    found = []
    for key in file.keys():  # noqa: SIM118 (no mapping: it has no iterator)
        try:
            kind, name, start = key.split("|")
            (length,) = (0,) if kind == _LOCAL else file.get_slice(key).get_shape()  # local ones have any shape
            found.append(_Stored(kind, name, int(start), int(start) + length, file, key))
        except (ValueError, SafetensorError) as error:
            raise UserError(
                f"a file of the checkpoint is not one of train.py's ({error}): delete the "
                "checkpoint's folder to continue from the one before it"
            ) from None
    return found


def _check_all_read(stored: set[str], found: set[str]) -> None:
    """Raise UserError for a state that nothing has read; collective, as a rank may hold no part of a small group."""
    if left := stored - {STEP}.union(*gather_from_ranks(found)):
        raise UserError(
            f"the checkpoint holds {', '.join(sorted(left))}, which the optimizer has no place for: it was "
            "made with another optimizer"
        )


def _fill(shard: Shard, stored: list[_Stored], optimizer_steps: int) -> None:
    """Copy what is stored of a shard into it."""
    if shard.kind == STEP:
        stored = stored[:1]  # the same number wherever it stands
        if not stored:  # an Adam that counts otherwise wrote it
            shard.values.fill_(optimizer_steps)
            return
    missing, end = shard.values.numel(), shard.start + shard.values.numel()
    for stretch in stored:
        first, last = max(shard.start, stretch.start), min(end, stretch.end)
        if first < last:
            shard.values[first - shard.start : last - shard.start].copy_(stretch.part(first, last))
            missing -= last - first
    if missing:
        raise UserError(
            f"the checkpoint lacks {missing:,} values of {shard.kind} of {shard.name}: it was made with "
            "another optimizer or model"
        )

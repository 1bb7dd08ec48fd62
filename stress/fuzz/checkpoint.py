"""Checkpoint folders: run_state.json and the ranks' shares, damaged and forged, chosen from and read as on a resume."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from stress.fuzz.choices import NOWHERE, Choices, json_text, mutated_bytes, mutated_json, put
from stress.fuzz.folders import mutated_safetensors
from training.checkpointing import checkpoint, engine_state
from training.checkpointing.earlier_runs import STATE_FILE
from training.checkpointing.run_state import RunState
from training.engine.internals import MASTER, Shard

SHARES = ("rank-00000.safetensors", "rank-00001.safetensors")
STEPS = (10, 20)


class CheckpointCase:
    """A run's checkpoints/ with two of them, of two ranks each."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        halves = torch.arange(12.0).split(6)
        self._shares = {
            name: save(
                {
                    f"{MASTER}|w|{6 * rank}": half.clone(),
                    f"exp_avg|w|{6 * rank}": half.clone(),
                    "local|rng|0": torch.zeros(16, dtype=torch.uint8),
                }
            )
            for rank, (name, half) in enumerate(zip(SHARES, halves, strict=True))
        }
        self._numbers = {
            "split": {"processes": 2, "ep_size": 1, "zero_stage": 2},
            "global_steps": 10,
            "global_samples": 80,
            "skipped_steps": 0,
            "optimizer_steps": 10,
            "scheduler": {"last_batch_iteration": 10},
            "loss_scaler": {"cur_scale": 65536.0},
        }

    def seeds(self) -> list[bytes]:
        """Whole ones, and a change in each file."""
        return [bytes([2 * change % 256, *range(change, change + 40)]) for change in range(12)]

    def __call__(self, choices: Choices, folder: Path, outside: Path) -> str:
        """See guard.Case."""
        place = folder / "checkpoints"
        place.mkdir()
        for step in STEPS:
            self._write(place, step, choices)
        put(place / checkpoint.LATEST_FILE, b"step-00000020\n", choices, NOWHERE)
        resume = choices.pick(("auto", str(place / "step-00000010"), str(folder), str(place)))
        found, warnings = checkpoint.choose(folder, resume)
        assert found is not None
        for warning in warnings:
            assert len(warning) < 3000 and "\ud800" not in warning
        state = checkpoint.read_state(found)
        state.update_best(1.0)
        state.early_stopping(3)
        state.batch_number(state.step)
        _restore_weights(found)
        return f"restored, step {found.name}, {len(warnings)} passed over"

    def _write(self, place: Path, step: int, choices: Choices) -> None:
        folder = place / f"step-{step:08d}"
        folder.mkdir()
        shares = dict(self._shares)
        for name in SHARES:
            if choices.once_in(6):
                shares[name] = mutated_safetensors(shares[name], choices)
        written = shares if choices.once_in(2) else self._shares  # a forger takes care that the hashes agree
        files = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in written.items()
        }
        content: Any = {
            "format": checkpoint.FORMAT,
            **RunState(step=step, total_steps=100).model_dump(),
            "engine": self._numbers,
            "files": files,
        }
        changed = mutated_json(content, choices) if choices.once_in(3) else content
        with suppress(Exception):
            right = json.dumps(changed if choices.once_in(2) else content, sort_keys=True).encode()
            changed = {**changed, "sha256": hashlib.sha256(right).hexdigest()}
        for name, data in shares.items():
            put(folder / name, data, choices, NOWHERE)
        text = json_text(changed, choices)
        put(
            folder / STATE_FILE,
            mutated_bytes(text, choices) if choices.once_in(20) else text,
            choices,
            NOWHERE,
        )


def _restore_weights(found: Path) -> None:
    """What `engine_state.restore` does with the files, into one weight and without an engine."""
    content = checkpoint._read(found)
    with ExitStack() as stack:
        files = [stack.enter_context(engine_state._open(found / name)) for name in sorted(content.files)]
        stored = [part for file in files for part in engine_state._contents(file)]
        for kind in (MASTER, "exp_avg"):
            parts = [part for part in stored if (part.kind, part.name) == (kind, "w")]
            engine_state._fill(Shard(kind, "w", 0, torch.zeros(12)), parts, optimizer_steps=6)
        [part.whole() for part in stored if part.kind == "local"]

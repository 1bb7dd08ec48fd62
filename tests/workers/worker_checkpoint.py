"""Checkpoints written on 2 processes and read on 2, 1 and 4: `worker_checkpoint.py FOLDER`, once a rank.

On 2 processes each case trains 4 steps, saves, trains 4 more, and does the last 4 again from the checkpoint. On 1 and 4
processes, with the same global batch, it does them too, with the experts where they were not before. Rank 0
writes FOLDER/{processes}.json; test_elastic.py judges. Start it with 2 processes first.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cpu_fp16 import allow_fp16
from worker_engine import DENSE, MOE, SPLIT, Here, Training, moved, resolved

from model import ModelConfig
from training.checkpointing import checkpoint
from training.checkpointing.run_state import RunState
from training.processes.process_group import World

COMMON = (
    "train_batch_size=8",
    "train_micro_batch_size_per_gpu=2",
    "scheduler.params.warmup_num_steps=2",
    "gradient_accumulation_steps=auto",
)
ADAMW = ("optimizer.params.lr=2e-3", "optimizer.params.eps=1e-6")
FP32, FP16 = ("fp16.enabled=false",), ("fp16.initial_scale_power=8",)
BF16 = ("fp16.enabled=false", "bf16.enabled=true")


def stage(number: int) -> tuple[str, ...]:
    """A ZeRO stage."""
    return (f"zero_optimization.stage={number}",)


CASES: dict[str, tuple[str, ModelConfig, tuple[str, ...]]] = {
    **{f"fp32 stage {number}": ("t4x2", MOE, FP32 + stage(number)) for number in (0, 1, 2)},
    "fp32 stage 2 split": ("t4x2", SPLIT, FP32 + stage(2)),
    "fp32 stage 2 dense": ("t4x2", DENSE, FP32 + stage(2)),
    **{f"fp16 stage {number}": ("t4x2", MOE, FP16 + stage(number)) for number in (1, 2)},
    "fp16 stage 2 split": ("t4x2", SPLIT, FP16),
    **{f"bf16 stage {number}": ("t4x2", MOE, BF16 + stage(number)) for number in (1, 2)},
    "muon fp32 stage 2": ("t4x2_fast", MOE, FP32),
    "muon fp32 stage 2 split": ("t4x2_fast", SPLIT, FP32),
    "muon bf16 stage 1": ("t4x2_fast", MOE, BF16 + stage(1)),
    "muon bf16 stage 1 wide gradients": ("t4x2_fast", DENSE, (*BF16, *stage(1), "data_types.grad_accum_dtype=fp32")),
    "bf16 stage 1 wide gradients": ("t4x2", MOE, (*BF16, *stage(1), "data_types.grad_accum_dtype=fp32")),
    "muon bf16 stage 2": ("t4x2_fast", MOE, BF16),
    "muon fp16 stage 2": ("t4x2_fast", MOE, FP16),
}


def build(here: Here, name: str, ep_size: int) -> Training:
    """An engine that has not trained yet; the batch is the same on any number of processes."""
    file, config, overrides = CASES[name]
    common = COMMON + (ADAMW if file == "t4x2" else ())
    config = replace(config, ep_size=ep_size)
    return Training(here, config, resolved(here, file, *common, *overrides, config=config))


def write(here: Here, name: str) -> dict[str, Any]:
    """On 2 processes: a stretch, and its second half again."""
    whole = build(here, name, CASES[name][1].ep_size)
    whole.run(4)
    path = checkpoint.save(whole.engine, here.folder / name, RunState(step=4), 2, {}).path
    at_save = whole.weights()
    whole.run(4)
    here.keep(f"{name}-at", at_save)
    here.keep(f"{name}-after", whole.weights())
    return {"lines": whole.lines, "apart": moved(whole.weights(), read(here, name, path, whole.config.ep_size)[1])}


def read(here: Here, name: str, path: Path, ep_size: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The second half from a checkpoint."""
    again = build(here, name, ep_size)
    checkpoint.load(again.engine, path)
    restored, again.step = again.weights(), 4
    again.run(4)
    after = again.weights()
    expected = (
        [torch.load(here.folder / f"2-{name}-{when}.pt") for when in ("at", "after")]
        if here.world.rank == 0 and here.world.size != 2
        else [restored, after]
    )
    return {"lines": again.lines, "restored": moved(expected[0], restored), "apart": moved(expected[1], after)}, after


def elsewhere(here: Here, name: str) -> dict[str, Any]:
    """On 1 or 4 processes: on 4, experts that were together are apart, and together if they were apart."""
    path = here.folder / name / "step-00000004"
    sizes = [here.world.size] if CASES[name][1] is MOE else [1]
    if name == "fp32 stage 2" and here.world.size > 1:
        sizes.append(1)
    return {f"ep {size}": read(here, name, path, size)[0] for size in sizes}


def main(folder: Path) -> None:
    """Every case."""
    allow_fp16()
    world = World.from_environment()
    dist.init_process_group("gloo")
    here, results = Here(world, folder), {}
    for name in CASES:
        try:
            results[name] = write(here, name) if world.size == 2 else elsewhere(here, name)
        except Exception:
            results[name] = {"failed": traceback.format_exc()}
        if world.rank == 0:
            (folder / f"{world.size}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

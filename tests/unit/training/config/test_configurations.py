"""Every key of the schema is stepped on two processes (tests/workers/configurations.py), refused, or without effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from configurations import CONFIGURATIONS

from common.hardware import Device
from model import ModelConfig
from training.config import features, schema
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts

CONFIGS = Path(__file__).parents[4] / "ds_configs"
CPU = Device("cpu", 2, "Some Processor", 8 * 2**30, None, True, True, True, None)
RUN = RunFacts(world_size=2, epochs=1, max_steps=8, output=Path("runs/x"), model=ModelConfig())
# Tried by hand on a CPU: it prints the memory in use at every pass, in ten times the time of the step
BY_HAND = ("memory_breakdown",)
# In every file of ds_configs/, and so in every real run
IN_EVERY_FILE = ("optimizer", "scheduler", "tensorboard", "train_batch_size", "train_micro_batch_size_per_gpu")
# A block with these keys is on or off as a whole, and off here
OFF = (
    "wandb",
    "comet",
    "compile",
    "hybrid_engine",
    "weight_quantization",
    "activation_checkpointing",
    "torch_autocast",
)


def leaves(block: Mapping, prefix: str = "") -> Iterator[str]:
    for key, kind in block.items():
        if isinstance(kind, Mapping):
            yield from leaves(kind, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_no_key_is_let_through_that_was_never_stepped():
    stepped = {change.partition("=")[0] for each in CONFIGURATIONS.values() for change in each.changes}
    for file in CONFIGS.glob("*.json"):
        stepped.update(leaves({key: value for key, value in load(file).items() if key != "bufudu"}))
    stepped |= {key.rpartition(".")[0] for key in stepped}  # of "checkpoint.x": the block, in which anything passes
    answered = (*features.LACKING, *features.WITHOUT_EFFECT, *IN_EVERY_FILE, *OFF, *BY_HAND)
    missing = [
        key
        for key in leaves(schema.keys().top_level)
        if key not in stepped
        and not any(key == known or key.startswith(f"{known}.") for known in answered)
        and key.removeprefix("zero_optimization.").removeprefix("stage3_") not in features.OF_ZERO3
    ]
    assert missing == []
    blocks = [change.partition("=")[2] for each in CONFIGURATIONS.values() for change in each.changes]
    types = {json.loads(block)["type"] for block in blocks if block.startswith('{"type"')}
    assert set(schema.keys().schedules) - {"WarmupCosineLR"} <= types
    tried = types | {"AdamW", "Muon", "Adam"}  # of the files, and Adam is AdamW but for its decay
    untried = {name for name in schema.keys().optimizer_names() if name not in tried}
    assert untried == {"Lamb", "Lion", "Muadam", "Muadamw", "Musgd"}  # for GPUs alone, or refused


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_is_let_through(name):
    wanted = CONFIGURATIONS[name]
    facts = replace(RUN, model=ModelConfig(use_moe=not wanted.dense))
    config = load(CONFIGS / f"{wanted.base}.json", [*wanted.changes, "train_batch_size=auto"])
    assert check(config, facts, CPU, source=name).resolve(100).total_steps == 8


def test_what_is_off_is_off():
    for block in OFF:
        assert block in features.LACKING or block in ("wandb", "comet")

"""What can be fuzzed, by name; a target's modules are imported when it is built, so that atheris can watch them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Target:
    """`module`.`case` is what runs; the coverage of `packages` guides."""

    module: str
    case: str
    packages: tuple[str, ...]
    about: str


TARGETS = {
    "corpus": Target("corpus", "CorpusCase", ("corpus",), "prepare() on arbitrary bytes, plain, gzip, Zstandard"),
    "config": Target(
        "config",
        "ConfigCase",
        ("training", "model.config", "common.files"),
        "the DeepSpeed JSON, its bufudu block and --set",
    ),
    "manifest": Target(
        "folders", "FolderCase", ("corpus", "model.hf", "model.config"), "prepared folders and model folders"
    ),
    "checkpoint": Target(
        "checkpoint",
        "CheckpointCase",
        (
            "training.checkpointing.checkpoint",
            "training.checkpointing.run_state",
            "training.checkpointing.engine_state",
            "common.files",
        ),
        "run_state.json and the shares of a checkpoint",
    ),
}


def build(name: str) -> Any:
    """A `guard.Case` with seeds()."""
    target = TARGETS[name]
    return getattr(import_module(f"stress.fuzz.{target.module}"), target.case)()

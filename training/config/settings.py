"""A DeepSpeed configuration, read by what it says, and the run and the machine that it must be right for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.hardware import Device
from model.config import ModelConfig

BATCH, MICRO, ACCUMULATION = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


@dataclass(frozen=True)
class RunFacts:
    """What the machine and the flags say of a run before its text is prepared; "auto" values are made of it."""

    world_size: int
    epochs: float
    max_steps: int | None
    """The length of the run, if a flag gives it."""
    output: Path
    model: ModelConfig


@dataclass(frozen=True)
class Settings:
    """A DeepSpeed configuration with only known keys, and values of the right kinds."""

    config: dict

    def block(self, name: str) -> dict:
        """Return a block of the file, empty if it is not written."""
        return self.config.get(name, {})

    def at(self, path: str) -> object:
        """Return the value at a dotted path, None if there is none."""
        value: object = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def params(self, name: str) -> dict:
        """Return the parameters of the optimizer or of the scheduler."""
        return self.block(name).get("params", {})

    @property
    def micro_batch(self) -> int:
        """The rows of one forward pass on one process."""
        return self.config[MICRO]

    @property
    def accumulation(self) -> int:
        """The micro-batches of one optimizer step."""
        return self.config[ACCUMULATION]

    @property
    def train_batch(self) -> int:
        """The rows of one optimizer step on all processes."""
        return self.config[BATCH]

    @property
    def precision(self) -> str:
        """One of "fp32", "fp16" and "bf16"."""
        return next((name for name in ("fp16", "bf16") if self.block(name).get("enabled", False)), "fp32")

    @property
    def zero_stage(self) -> int:
        """The stage of ZeRO; 0 without it."""
        return self.block("zero_optimization").get("stage", 0)

    @property
    def optimizer_name(self) -> str:
        """The optimizer as the file writes it; empty if it does not."""
        return self.block("optimizer").get("type", "")

    @property
    def schedule(self) -> str:
        """The kind of schedule, such as WarmupCosineLR; empty without one."""
        return self.block("scheduler").get("type", "")

    @property
    def warmup_steps(self) -> int:
        """The warm-up in optimizer steps; 0 without one."""
        # 1000 is DeepSpeed's default
        return self.params("scheduler").get("warmup_num_steps", 1000) if self.schedule.startswith("Warmup") else 0

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of the schedule; with Muon that of the matrices."""
        params, curve = self.params("optimizer"), self.params("scheduler")
        lr = params["muon_lr"] if self.optimizer_name.lower() == "muon" and "muon_lr" in params else params["lr"]
        if self.schedule in ("WarmupLR", "WarmupDecayLR"):
            lr = curve.get("warmup_max_lr", 0.001 if self.schedule == "WarmupDecayLR" else lr)
        elif self.schedule == "OneCycle":
            lr = curve["cycle_max_lr"]
        return float(max(lr)) if isinstance(lr, list) else float(lr)


@dataclass(frozen=True)
class Case(Settings):
    """A configuration, the run and the device that it is to be right for."""

    run: RunFacts
    device: Device

    @property
    def optimizer(self) -> str:
        """The optimizer's name in small letters, as DeepSpeed compares it."""
        return self.optimizer_name.lower()

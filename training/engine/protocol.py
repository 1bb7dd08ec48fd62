"""What this project uses of a DeepSpeed engine, as types: `deepspeed.initialize` returns something that fits them.

Everything here is called by users of DeepSpeed, too. What is private to it is read in training/engine/internals.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from model import CausalLM
from model.transformer import Losses


class Optimizer(Protocol):
    """DeepSpeed's optimizer, or PyTorch's where DeepSpeed does not wrap it."""

    param_groups: list[dict[str, Any]]


class Scheduler(Protocol):
    """A learning rate schedule; it counts optimizer steps."""

    last_batch_iteration: int

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Set the learning rate of the next optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        ...

    def load_state_dict(self, sd: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


class Monitor(Protocol):
    """DeepSpeed's monitor: TensorBoard, CSV files and others, as the DeepSpeed JSON asks for them."""

    enabled: bool

    def write_events(self, event_list: Sequence[tuple[str, float, int]]) -> None:
        """Write figures, each as (name, value, number of samples)."""


class Engine(Protocol):
    """One rank's DeepSpeed engine around a CausalLM."""

    module: CausalLM
    optimizer: Optimizer
    lr_scheduler: Scheduler | None
    monitor: Monitor
    device: torch.device
    global_rank: int
    world_size: int
    global_steps: int
    global_samples: int
    skipped_steps: int
    micro_steps: int

    def __call__(
        self, ids: Tensor, targets: Tensor, divisor: float | None = None, counted: int | None = None
    ) -> Losses: ...

    def backward(self, loss: Tensor) -> Any:
        """Add the gradients of a micro-batch to those of the step."""
        ...

    def step(self) -> None:
        """Count a micro-batch; after the last of an accumulation, step the weights."""

    def train(self) -> Any:
        """Switch the module to training."""
        ...

    def eval(self) -> Any:
        """Switch the module to evaluation."""
        ...

    def was_step_applied(self) -> bool:
        """Return whether the latest step changed the weights: fp16 skips a step whose gradients overflow."""
        ...

    def get_global_grad_norm(self) -> float | None:
        """Return the norm of all gradients in the latest step, before clipping; None if there is none."""
        ...

    def fp16_enabled(self) -> bool:
        """Return whether the weights are fp16, with loss scaling."""
        ...

    def zero_optimization_stage(self) -> int:
        """Return the stage of ZeRO."""
        ...

    def gradient_accumulation_steps(self) -> int:
        """Return the micro-batches of one optimizer step."""
        ...

    def destroy(self) -> None:
        """Release hooks and buffers of the engine."""

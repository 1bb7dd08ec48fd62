"""Weights, gradients and optimizer states of one process, counted from the parameters and DeepSpeed's ZeRO rules.

The rules are those of 0.19.8, read in zero/stage_1_and_2.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from common.uncompiled import on_meta_device
from model import CausalLM, ModelConfig
from training.config.resolve import Settings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BUCKET = 500_000_000  # DeepSpeed's default, in elements


@dataclass(frozen=True)
class ParameterGroup:
    """One of the optimizer's parameter groups, in elements of this rank."""

    numel: int
    ranks: int
    """Data-parallel processes that hold the same parameters, and so share their optimizer states under ZeRO."""
    muon: bool

    @property
    def part(self) -> int:
        """Elements of one partition; DeepSpeed pads a group to two elements a rank."""
        unit = 2 * self.ranks
        return -(-self.numel // unit) * 2


def parameter_split(config: ModelConfig, world_size: int, settings: Settings) -> list[ParameterGroup]:
    """Return the groups that training/engine/ and DeepSpeed make, in order: decayed, plain, experts; Muon's first."""
    muon = settings.optimizer_name.lower() == "muon"
    with on_meta_device():
        parameters = CausalLM(config.for_inference()).named_parameters()
    sizes: Counter[tuple[bool, bool, bool]] = Counter()
    for name, parameter in parameters:
        plain = parameter.ndim < 2 or "embed" in name
        router = name.endswith(".mlp.gate.weight")
        sizes[".experts." in name, plain, not muon or plain or router] += parameter.numel()
    groups = []
    for (expert, _, by_adam), numel in sorted(sizes.items()):
        share = config.ep_size if expert else 1
        groups.append(ParameterGroup(numel // share, world_size // share, not by_adam))
    return groups


def states_of(settings: Settings, group: ParameterGroup) -> int:
    """Return how many numbers the optimizer keeps a parameter, beside the weight."""
    if group.muon:
        return 1
    momentum = settings.params("optimizer").get("momentum")
    return {"sgd": 1 if momentum else 0, "adagrad": 1, "lion": 1}.get(settings.optimizer_name.lower(), 2)


@dataclass(frozen=True)
class ModelStates:
    """Weights, gradients and optimizer states, in bytes of one process.

    None of them depends on the batch.
    """

    config: ModelConfig
    resolved: Settings
    world_size: int
    device_kind: str

    @cached_property
    def groups(self) -> list[ParameterGroup]:
        """The optimizer's parameter groups on this rank."""
        return parameter_split(self.config, self.world_size, self.resolved)

    @property
    def zero_stage(self) -> int:
        """The stage of ZeRO; 0 without it."""
        return self.resolved.zero_stage

    @property
    def _zero(self) -> dict[str, Any]:
        return self.resolved.block("zero_optimization")

    @property
    def numel(self) -> int:
        """Parameters of this rank."""
        return sum(group.numel for group in self.groups)

    @property
    def partition(self) -> int:
        """Parameters whose optimizer states this rank keeps."""
        return sum(self._own(group) for group in self.groups)

    def _own(self, group: ParameterGroup) -> int:
        return group.part if self.zero_stage else group.numel

    @property
    def width(self) -> int:
        """Bytes of a weight in the forward pass."""
        return DTYPES[self.resolved.precision].itemsize

    @property
    def gradient_width(self) -> int:
        """Bytes of an accumulated gradient; DeepSpeed accumulates in the precision of the weights by default."""
        wanted = self.resolved.block("data_types").get("grad_accum_dtype")
        return 4 if wanted == "fp32" else self.width

    @property
    def weights(self) -> int:
        """Bytes of the weights in the forward pass."""
        return self.width * self.numel

    @property
    def optimizer(self) -> int:
        """Bytes of the master copy and of the optimizer's states."""
        return sum(self._own(group) * self._state_width(group) for group in self.groups)

    def _state_width(self, group: ParameterGroup) -> int:
        """Return bytes a parameter. ZeRO keeps an fp32 copy of its partition even where the weights are fp32."""
        master = 4 if self.zero_stage or self.width == 2 else 0
        if group.muon:
            # momentum in the gradients' precision, and under ZeRO a second one, staged until the step is known good
            return master + (2 * self.gradient_width if self.zero_stage else 4)
        return master + 4 * states_of(self.resolved, group)

    @property
    def accumulated(self) -> int:
        """Bytes of gradients from one micro-batch to the next."""
        return self.gradient_width * (self.partition if self.zero_stage >= 2 else self.numel)

    @property
    def gradients(self) -> int:
        """Bytes from the last backward pass to the optimizer step: this rank's part, and Muon's updates beside it."""
        return self.gradient_width * self.partition + sum(map(self._update, self.groups))

    def _update(self, group: ParameterGroup) -> int:
        return group.part * self.gradient_width if group.muon and self.zero_stage else 0

    @property
    def bucket(self) -> int:
        """Elements of the buffer that gradients are collected in."""
        size = int(self._zero.get("reduce_bucket_size", _BUCKET))
        return min(size, self.numel) if self.device_kind == "cpu" else size

    @property
    def bucket_bytes(self) -> int:
        """Bytes of all buckets: with overlap_comm one is filled while the other is sent."""
        if not self.zero_stage or not self._zero.get("contiguous_gradients", True):
            return 0
        return self.width * self.bucket * (2 if self._zero.get("overlap_comm", False) else 1)

    def backward_begins(self) -> dict[str, int]:
        """Return gradients and buffers as the last backward pass of a step begins, when activations are at their most.

        A bucket is there from the first gradient on; a CPU gives it memory only as it is filled.
        """
        kept = self.accumulated if self.resolved.accumulation > 1 else 0
        return {"gradients": kept, "buffers": 0 if self.device_kind == "cpu" else self.bucket_bytes}

    def backward_ends(self) -> dict[str, int]:
        """Return gradients and buffers as the last backward pass of a step ends; a bucket is flattened to be sent."""
        accumulating, zero = self.resolved.accumulation > 1, self.zero_stage
        kept = self.accumulated if accumulating or zero < 2 else 0
        # a micro-batch's own part is beside what is accumulated, unless that is fp32, which it is added to at once
        own = self.gradient_width * self.partition if zero and not (accumulating and self._wide) else 0
        sent = self.width * min(self.bucket, self.numel) if zero else 0
        return {"gradients": kept + own, "buffers": self.bucket_bytes + sent}

    def step(self) -> dict[str, int]:
        """Return gradients and buffers at the peak of the optimizer step, which takes one group after the other."""
        if not self.zero_stage:
            # a copy in fp32, or one flattened to be averaged over the processes
            copies = 4 * self.numel if self.width == 2 or self.world_size > 1 else 0
            return {"gradients": self.gradients, "buffers": copies}
        moments = []
        for index, group in enumerate(self.groups):
            ahead = self.groups[index:]
            # the groups' gradients are views of one tensor; those of Muon's groups have been replaced by its updates
            part = 0 if all(other.muon for other in ahead) else self.gradient_width * self.partition
            copies = group.part * self._copy_width(group)
            moments.append({"gradients": part + sum(map(self._update, ahead)), "buffers": copies})
        return max(moments, key=lambda moment: sum(moment.values()))

    @property
    def _wide(self) -> bool:
        """Whether gradients are accumulated in fp32, and not in the 16 bits of the weights."""
        return self.gradient_width > self.width

    def _copy_width(self, group: ParameterGroup) -> int:
        """Return bytes a parameter: gradients flattened, then in fp32, then what an unfused Adam computes with."""
        params = self.resolved.params("optimizer")
        unfused = params.get("torch_adam", False) and not params.get("fused", False)
        flattened = 0 if self._wide else self.gradient_width
        return flattened + (4 if flattened == 2 else 0) + (8 if unfused and not group.muon else 0)

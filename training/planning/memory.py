"""How much memory one process needs, before it has any: tensors of fixed size are counted, the rest is rehearsed.

Weights, gradients and optimizer states follow from the parameter count and DeepSpeed's ZeRO rules (0.19.8, read in
zero/stage_1_and_2.py). Activations come from a rehearsal: the real network runs forward and backward on PyTorch's
"meta" device, where tensors have shapes but no memory, and every tensor is counted from its birth to its end. So the
figures follow the network when it changes. Checked against measured memory in tests/training/test_memory.py.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import CausalLM, ModelConfig, transformer
from training.config.resolve import Settings

ROUTING_IMBALANCE = 1.15
"""Experts on other ranks all get the room of the busiest one, assumed to take this multiple of its even share."""
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BUCKET = 500_000_000  # DeepSpeed's default, in elements
_PASS, _STEP, _EVALUATION = "forward and backward pass", "optimizer step", "evaluation"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process holds at the fullest moment of a phase of training."""

    phase: str
    weights: int
    """As the network computes with them; an expert on another rank does not count."""
    optimizer: int
    """The fp32 master copy of 16-bit weights (or of ZeRO's partition), and the optimizer's moments."""
    gradients: int
    activations: int
    """What the forward pass keeps for the backward pass, and the working set of the layer being computed."""
    logits: int
    """Of the loss: a chunk of logits while training, all of a micro-batch's in an evaluation."""
    buffers: int
    """Of DeepSpeed: gradient buckets on their way to other ranks, and copies in the optimizer step."""

    @property
    def total(self) -> int:
        """Bytes; without what the CUDA context and the allocator's rounding take."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.buffers


def estimate_memory(
    config: ModelConfig, resolved: Settings, *, world_size: int, seq_len: int, device_kind: str = "cuda"
) -> MemoryEstimate:
    """The fullest moment of a training run."""
    phases = memory_by_phase(config, resolved, world_size=world_size, seq_len=seq_len, device_kind=device_kind)
    return max(phases, key=lambda phase: phase.total)


def memory_by_phase(
    config: ModelConfig, resolved: Settings, *, world_size: int, seq_len: int, device_kind: str = "cuda"
) -> list[MemoryEstimate]:
    """The moments that can be the fullest: forward and backward pass, optimizer step, evaluation.

    With `device_kind="cpu"` a bucket counts only as far as gradients fill it: a page never written takes no memory.
    """
    states = ModelStates(config, resolved, world_size, device_kind)
    rehearsal = _Rehearsal(config, resolved, seq_len)
    always = {"weights": states.weights, "optimizer": states.optimizer}
    training = rehearsal.training(states)
    kept, copies = states.step()
    evaluation = rehearsal.evaluation()
    return [
        MemoryEstimate(
            _PASS,
            **always,
            gradients=training["gradients"],
            activations=training["activations"],
            logits=training["logits"],
            buffers=training["buffers"],
        ),
        MemoryEstimate(_STEP, **always, gradients=kept, activations=0, logits=0, buffers=copies),
        MemoryEstimate(
            _EVALUATION,
            **always,
            gradients=0,
            activations=evaluation["activations"],
            logits=evaluation["logits"],
            buffers=0,
        ),
    ]


@dataclass(frozen=True)
class _Group:
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


def parameter_split(config: ModelConfig, world_size: int, *, muon: bool) -> list[_Group]:
    """The groups that training/engine.py and DeepSpeed make, in their order: decayed, plain, experts; Muon's first."""
    with torch.device("meta"):
        parameters = CausalLM(config.for_inference()).named_parameters()
    sizes: Counter[tuple[bool, bool, bool]] = Counter()
    for name, parameter in parameters:
        plain = parameter.ndim < 2 or "embed" in name
        router = name.endswith(".mlp.gate.weight")
        sizes[".experts." in name, plain, not muon or plain or router] += parameter.numel()
    groups = []
    for (expert, _, by_adam), numel in sorted(sizes.items()):
        share = config.ep_size if expert else 1
        groups.append(_Group(numel // share, world_size // share, not by_adam))
    return groups


@dataclass(frozen=True)
class ModelStates:
    """What does not depend on the batch, in bytes of one process. ZeRO-3, which gathers layers as it goes, is rough."""

    config: ModelConfig
    resolved: Settings
    world_size: int
    device_kind: str = "cuda"
    stage: int | None = None
    """Another ZeRO stage than the configuration's, to compare."""
    groups: list[_Group] = field(init=False)

    def __post_init__(self) -> None:
        groups = parameter_split(self.config, self.world_size, muon=self._optimizer_name == "muon")
        object.__setattr__(self, "groups", groups)

    @property
    def zero_stage(self) -> int:
        return self.resolved.zero_stage if self.stage is None else self.stage

    @property
    def _zero(self) -> dict[str, Any]:
        return self.resolved.config.get("zero_optimization", {})

    @property
    def _optimizer_name(self) -> str:
        return self.resolved.optimizer_name.lower()

    @property
    def numel(self) -> int:
        """Parameters of this rank."""
        return sum(group.numel for group in self.groups)

    @property
    def partition(self) -> int:
        """Parameters whose optimizer states this rank keeps."""
        return sum(self._own(group) for group in self.groups)

    def _own(self, group: _Group) -> int:
        return group.part if self.zero_stage else group.numel

    @property
    def width(self) -> int:
        """Bytes of a weight in the forward pass."""
        return _DTYPES[self.resolved.precision].itemsize

    @property
    def gradient_width(self) -> int:
        """Bytes of an accumulated gradient; DeepSpeed accumulates in the precision of the weights unless told."""
        wanted = self.resolved.config.get("data_types", {}).get("grad_accum_dtype")
        return 4 if wanted == "fp32" else self.width

    @property
    def weights(self) -> int:
        return self.width * (self.partition if self.zero_stage == 3 else self.numel)

    @property
    def optimizer(self) -> int:
        """Master copy and moments; 0 if the file moves them to the CPU."""
        if self._zero.get("offload_optimizer", {}).get("device", "none") != "none":
            return 0
        return sum(self._own(group) * self._state_width(group) for group in self.groups)

    def _state_width(self, group: _Group) -> int:
        """Bytes a parameter. ZeRO keeps an fp32 copy of its partition even where the weights are fp32."""
        master = 4 if self.zero_stage or self.width == 2 else 0
        if group.muon:
            # momentum in the gradients' precision, and under ZeRO a second one, staged until the step is known good
            return master + (2 * self.gradient_width if self.zero_stage else 4)
        return master + {
            "sgd": 4 if self.resolved.config["optimizer"]["params"].get("momentum") else 0,
            "adagrad": 4,
            "lion": 4,
        }.get(self._optimizer_name, 8)

    @property
    def accumulated(self) -> int:
        """Gradients from one micro-batch to the next."""
        return self.gradient_width * (self.partition if self.zero_stage >= 2 else self.numel)

    @property
    def gradients(self) -> int:
        """Between the last backward pass and the optimizer step: this rank's part, and Muon's updates beside it."""
        return self.gradient_width * self.partition + sum(map(self._update, self.groups))

    def _update(self, group: _Group) -> int:
        return group.part * self.gradient_width if group.muon and self.zero_stage else 0

    @property
    def bucket(self) -> int:
        """Elements of the buffer that gradients are collected in."""
        size = int(self._zero.get("reduce_bucket_size", _BUCKET))
        return min(size, self.numel) if self.device_kind == "cpu" else size

    @property
    def bucket_bytes(self) -> int:
        """All buckets: with overlap_comm one is filled while the other is sent."""
        if not self.zero_stage or not self._zero.get("contiguous_gradients", True):
            return 0
        return self.width * self.bucket * (2 if self._zero.get("overlap_comm", self.zero_stage == 3) else 1)

    def step(self) -> tuple[int, int]:
        """(gradients, copies) at the fullest moment of the optimizer step, which takes one group after the other."""
        if not self.zero_stage:
            # a copy in fp32, or one flattened to be averaged over the processes
            return self.gradients, 4 * self.numel if self.width == 2 or self.world_size > 1 else 0
        moments = []
        for index, group in enumerate(self.groups):
            ahead = self.groups[index:]
            # the groups' gradients are views of one tensor; those of Muon's groups have been replaced by its updates
            part = 0 if all(other.muon for other in ahead) else self.gradient_width * self.partition
            moments.append((part + sum(map(self._update, ahead)), group.part * self._copy_width(group)))
        return max(moments, key=sum)

    def _copy_width(self, group: _Group) -> int:
        """Bytes a parameter: gradients flattened, then in fp32, then what an unfused Adam computes with."""
        flattened = 0 if self.gradient_width > self.width else self.gradient_width
        return flattened + (4 if flattened == 2 else 0) + self._adam_scratch(group)

    def _adam_scratch(self, group: _Group) -> int:
        params = self.resolved.config["optimizer"].get("params", {})
        unfused = params.get("torch_adam", False) and not params.get("fused", False)
        return 8 if unfused and not group.muon else 0


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that are still alive, by label; remembers the fullest moment."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.label = "activations"
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        own = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._born(leaf.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._gone, storage._cdata, self.label, storage.nbytes())
        self.hold(self.label, storage.nbytes())

    def _gone(self, key: int, label: str, size: int) -> None:
        self._known.discard(key)
        self.live[label] -= size

    def hold(self, label: str, size: int) -> None:
        """Add `size` bytes that no tensor of the rehearsal stands for; negative to let go."""
        self.live[label] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def labelled(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with what it makes counted under `label`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.label, before = label, self.label
            try:
                return function(*args, **kwargs)
            finally:
                self.label = before

        return call


class _Gradients:
    """What DeepSpeed does with each gradient of a backward pass, in bytes: collect, reduce, keep this rank's part."""

    def __init__(self, states: ModelStates, live: _LiveBytes) -> None:
        self.states, self.live = states, live
        self.collected, self.part = 0, 0
        self.accumulating = states.resolved.accumulation > 1
        if self.accumulating:
            live.hold("gradients", states.accumulated)

    def ready(self, parameter: nn.Parameter) -> None:
        """Post-accumulate hook of every parameter."""
        parameter.grad = None
        if not self.collected:
            self.live.hold("buffers", self.states.bucket_bytes - self.live.live["buffers"])
        if self.states.zero_stage < 2 and not self.accumulating:
            self.live.hold("gradients", parameter.numel() * self.states.gradient_width)
        elif self.states.zero_stage >= 2 and self.collected + parameter.numel() > self.states.bucket:
            self.reduce()
        self.collected += parameter.numel()

    def reduce(self) -> None:
        """A full bucket is flattened once more to be sent, and this rank's part of it kept."""
        if self.states.zero_stage:
            self._keep_part()
            sent = self.collected * self.states.width
            self.live.hold("buffers", sent)
            self.live.hold("buffers", -sent)
        self.collected = 0

    def _keep_part(self) -> None:
        """A micro-batch's own partition, beside the accumulated one; fp32 accumulation adds straight to that."""
        states = self.states
        if self.accumulating and states.gradient_width > states.width:
            return
        whole = states.gradient_width * states.partition
        touched = whole * self.collected // states.numel  # on a GPU the first bucket takes all of it
        grown = min(touched, whole - self.part) if states.device_kind == "cpu" else whole - self.part
        self.part += grown
        self.live.hold("gradients", grown)


class _Rehearsal:
    """The network on the meta device. Expert parallelism moves tokens but leaves as many on each rank: ep_size 1."""

    def __init__(self, config: ModelConfig, resolved: Settings, seq_len: int) -> None:
        self.drop_free = config.use_moe and not config.capacity_factor
        self.shape = resolved.micro_batch, seq_len
        padded = config.ep_size > 1 and self.drop_free  # by DeepSpeed's dispatch; ours gives each expert its own rows
        alone = replace(config, ep_size=1, capacity_factor=ROUTING_IMBALANCE if padded else config.capacity_factor)
        with torch.device("meta"):
            self.model = CausalLM(alone, _expert_layer).to(_DTYPES[resolved.precision])

    def training(self, states: ModelStates) -> Counter[str]:
        """Bytes by label at the fullest moment of a micro-batch, the last one of an accumulation."""
        ids = torch.empty(self.shape, dtype=torch.long, device="meta")
        live = _LiveBytes(self.model)
        gradients = _Gradients(states, live)
        hooks = [parameter.register_post_accumulate_grad_hook(gradients.ready) for parameter in self.model.parameters()]
        loss = live.labelled("logits", transformer.linear_cross_entropy)
        with live, _stand_in_attention(), mock.patch.object(transformer, "linear_cross_entropy", loss):
            self.model(ids, ids).total.backward()
            gradients.reduce()
        for hook in hooks:
            hook.remove()
        return live.peak

    def evaluation(self) -> Counter[str]:
        """Bytes by label at the fullest moment of an evaluation pass."""
        ids = torch.empty(self.shape, dtype=torch.long, device="meta")
        live = _LiveBytes(self.model)
        self.model.train(self.drop_free)  # DeepSpeed's evaluation room differs only where tokens may be dropped
        head = self.model._head
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_stand_in_attention())
            stack.enter_context(live)

            def label_from_here(hidden: Tensor) -> Tensor:
                live.label = "logits"
                return head(hidden)

            stack.enter_context(mock.patch.object(self.model, "_head", label_from_here))
            self.model.loss_sum(ids, ids)
        self.model.train()
        return live.peak


def _expert_layer(config: ModelConfig) -> nn.Module:
    from model.moe import DeepSpeedMoE  # imports DeepSpeed, some seconds that a dense model need not wait

    layer = DeepSpeedMoE(config)
    layer.moe.deepspeed_moe.gate.use_rts = False  # draws numbers, of which the meta device has none
    return layer


class _Attention(torch.autograd.Function):
    """Memory traffic of the fused attention kernels, GPU (memory-efficient) and CPU alike: no scores are kept."""

    @staticmethod
    def forward(ctx: Any, q_BNTD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, mask: Tensor | None) -> Tensor:
        # PyTorch turns a boolean mask into one to add, in the precision of the queries, and keeps it for every layer
        bias = None if mask is None else torch.empty_like(mask, dtype=q_BNTD.dtype)
        batch, heads, length, width = q_BNTD.shape
        y_BNTD = q_BNTD.new_empty(batch, length, heads, width).transpose(1, 2)
        log_sum_exp = q_BNTD.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(q_BNTD, k_BNSD, v_BNSD, bias, y_BNTD, log_sum_exp)
        return y_BNTD

    @staticmethod
    def backward(ctx: Any, grad_BNTD: Tensor) -> tuple[Tensor | None, ...]:
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


@contextmanager
def _stand_in_attention() -> Iterator[None]:
    """On the meta device PyTorch would choose the kernel that keeps all scores."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return _Attention.apply(q, k, v, attn_mask)

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield

"""How much memory one process needs, before it has any: fixed sizes are counted, activations are traced.

Weights, gradients and optimizer states follow from the parameter count and DeepSpeed's ZeRO rules (0.19.8, read in
zero/stage_1_and_2.py). Activations come from a trace: the real network runs forward and backward on PyTorch's
"meta" device, where tensors have shapes but no memory, and every tensor is counted from its birth to its end. So the
figures follow the network when it changes. tests/unit/training/planning/test_memory.py holds them against measurements.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.uncompiled import on_meta_device
from model import CausalLM, ModelConfig, transformer
from model.kernels import Kernels
from training.config.resolve import Settings
from training.planning.model_states import DTYPES, ModelStates

ROUTING_IMBALANCE = 1.15
"""Experts on other ranks are all padded to the busiest one, assumed to take this multiple of its even share."""
_PASS, _STEP, _EVALUATION = "forward and backward pass", "optimizer step", "evaluation"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process holds at the fullest moment of a phase of training."""

    phase: str
    weights: int
    """Weights as the network computes with them; an expert on another rank does not count."""
    optimizer: int
    """The fp32 master copy of 16-bit weights (or of ZeRO's partition), and the optimizer's states."""
    gradients: int = 0
    activations: int = 0
    """What the forward pass keeps for the backward pass, and the working set of the layer being computed."""
    logits: int = 0
    """Logits of the loss, a chunk at a time."""
    buffers: int = 0
    """DeepSpeed's gradient buckets on their way to other ranks, and its copies in the optimizer step."""

    @property
    def total(self) -> int:
        """All bytes but those of the CUDA context and of the allocator's rounding."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits + self.buffers


def memory_by_phase(
    config: ModelConfig,
    resolved: Settings,
    *,
    world_size: int,
    seq_len: int,
    device_kind: str,
    kernels: Sequence[str] = (),
) -> list[MemoryEstimate]:
    """Return the phases that can take the most: forward and backward pass, optimizer step, evaluation.

    `kernels` are the operations that are computed with fused kernels, which keep less for the backward pass.
    With `device_kind="cpu"` a bucket counts only as far as gradients fill it: a page never written takes no memory.
    """
    states = ModelStates(config, resolved, world_size, device_kind)
    trace = _MetaTrace(config, resolved, seq_len, kernels)
    always = {"weights": states.weights, "optimizer": states.optimizer}
    begins, ends, steps = states.backward_begins(), states.backward_ends(), states.step()
    return [
        max(
            MemoryEstimate(_PASS, **always, **begins, **trace.training()),
            MemoryEstimate(_PASS, **always, **ends),
            key=lambda moment: moment.total,
        ),
        MemoryEstimate(_STEP, **always, **steps),
        MemoryEstimate(_EVALUATION, **always, **trace.evaluation()),
    ]


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that are still alive, by label, and keeps their peak."""

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
        """Add `size` bytes that no tensor of the trace stands for; negative to let go."""
        self.live[label] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def labelled(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, with what it makes counted under `label`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.label, before = label, self.label
            try:
                return function(*args, **kwargs)
            finally:
                self.label = before

        return call


class _MetaTrace:
    """The network on the meta device.

    Expert parallelism moves tokens but leaves as many on each rank, so that ep_size is 1 here. What it adds is counted
    apart: a layer's rows once more, since an expert's lie apart in what comes from other ranks and are copied for each
    of its products, and the rows on their way from and to another rank.
    """

    def __init__(self, config: ModelConfig, resolved: Settings, seq_len: int, kernels: Sequence[str]) -> None:
        self.drop_free = config.use_moe and not config.capacity_factor
        self.shape = resolved.micro_batch, seq_len
        padded = config.ep_size > 1 and self.drop_free  # by DeepSpeed's dispatch; ours gives each expert its own rows
        alone = replace(config, ep_size=1, capacity_factor=ROUTING_IMBALANCE if padded else config.capacity_factor)
        routes = resolved.micro_batch * seq_len * config.num_experts_per_tok
        rows = routes * (alone.capacity_factor or 1.0) * config.hidden_size * DTYPES[resolved.precision].itemsize
        self.copied = int(config.num_hidden_layers * rows) if config.ep_size > 1 else 0
        self.moving = int(2 * rows) if config.ep_size > 1 else 0
        with on_meta_device():
            self.model = CausalLM(alone, _expert_layer).to(DTYPES[resolved.precision])
        self.model.use_kernels(Kernels.fused(kernels))

    def training(self) -> Counter[str]:
        """Return the bytes by label at the peak of a micro-batch; DeepSpeed takes each gradient away at once."""

        def take(parameter: nn.Parameter) -> None:
            parameter.grad = None

        with self._counted("linear_cross_entropy", self.copied + self.moving) as (live, ids):
            hooks = [parameter.register_post_accumulate_grad_hook(take) for parameter in self.model.parameters()]
            self.model(ids, ids).total.backward()
            for hook in hooks:
                hook.remove()
        return live.peak

    def evaluation(self) -> Counter[str]:
        """Return the bytes by label at the peak of an evaluation pass."""
        # DeepSpeed's expert capacity in evaluation differs only where tokens may be dropped
        self.model.train(self.drop_free)
        with torch.no_grad(), self._counted("cross_entropy_sum", self.moving) as (live, ids):
            self.model.loss_sum(ids, ids)
        self.model.train()
        return live.peak

    @contextmanager
    def _counted(self, loss: str, elsewhere: int) -> Iterator[tuple[_LiveBytes, Tensor]]:
        """Count what is made, what the function `loss` makes as logits; yield the counter and a batch of ids."""
        ids = torch.empty(self.shape, dtype=torch.long, device="meta")
        live = _LiveBytes(self.model)
        live.hold("activations", elsewhere)
        logits = live.labelled("logits", getattr(transformer, loss))
        attention = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention)
        with attention, mock.patch.object(transformer, loss, logits), live:
            yield live, ids


def _expert_layer(config: ModelConfig) -> nn.Module:
    """Return the training form on one process, without the random order in which DeepSpeed fills a capped expert."""
    from model.moe import DeepSpeedMoE  # imports DeepSpeed, some seconds that a dense model need not wait

    layer = DeepSpeedMoE(config)
    gate: Any = layer.moe.deepspeed_moe.gate  # DeepSpeed has no types
    gate.use_rts = False  # draws numbers, of which the meta device has none
    return layer


class _Attention(torch.autograd.Function):
    """Memory traffic of the fused attention kernels, GPU (memory-efficient) and CPU alike: no scores are kept."""

    @staticmethod
    def forward(ctx: Any, q_BNTD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, width = q_BNTD.shape
        y_BNTD = q_BNTD.new_empty(batch, length, heads, width).transpose(1, 2)
        log_sum_exp = q_BNTD.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(q_BNTD, k_BNSD, v_BNSD, mask, y_BNTD, log_sum_exp)
        return y_BNTD

    @staticmethod
    def backward(ctx: Any, grad_BNTD: Tensor) -> tuple[Tensor | None, ...]:
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Stand in for PyTorch's, which on the meta device would be the kernel that keeps all scores."""
    return _Attention.apply(q, k, v, attn_mask)

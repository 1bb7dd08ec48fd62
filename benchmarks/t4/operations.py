"""Every operation of a forward and backward pass: how often, floating-point operations, bytes read and written.

The real network runs, on PyTorch's "meta" device where tensors have shapes but no memory, or on real tensors; a
dispatch mode sees each aten operation, so the figures follow the network when it changes. What the counts leave out:
caches (a tensor that was just written is read again as if from memory) and the work of elementwise functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from common.uncompiled import on_meta_device
from model import CausalLM, ModelConfig
from model.kernels import Kernels, likelihood, norms, products, routing

MATRIX, ATTENTION, ELEMENTWISE, MOVING = "matrix products", "attention", "elementwise", "moving"
_MOVES = {
    "copy_",
    "clone",
    "_to_copy",
    "cat",
    "stack",
    "index",
    "index_select",
    "gather",
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "index_add_",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "index_copy_",
    "embedding",
    "embedding_dense_backward",
    "repeat",
    "repeat_interleave",
    "contiguous",
    "slice_backward",
    "select_backward",
    "constant_pad_nd",
    "fill_",
    "zero_",
    "zeros_like",
    "zeros",
    "new_zeros",
    "full",
}
_READS_ROWS = {"embedding", "index", "index_select", "gather"}  # as many values as come out, whatever they lie in
_WRITES_ROWS = {"scatter_", "scatter_add_", "index_add_", "index_put_", "_index_put_impl_", "index_copy_"}
_NOTHING = {
    "empty",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
    "detach",
    "detach_",
    "alias",
    "_local_scalar_dense",
    "lift_fresh",
    "is_same_size",
    "_unsafe_view",
    "_reshape_alias",
}


_CPU_ATTENTION = {f"_scaled_dot_product_flash_attention_for_cpu{way}" for way in ("", "_backward")}


@dataclass(frozen=True)
class Operation:
    """One call: floating-point operations, bytes read and written, and which memory they are in (key, bytes)."""

    name: str
    kind: str
    shapes: str
    flops: float
    bytes: float
    backward: bool = False
    reads: tuple[tuple[int, int], ...] = ()
    writes: tuple[tuple[int, int], ...] = ()


class OperationCounter(TorchDispatchMode):
    """Collects what runs under it in `operations`.

    With `places` it holds on to every tensor, to know which operation uses what another made.
    """

    def __init__(self, *, places: bool = True) -> None:
        super().__init__()
        self.places = places
        self.operations: list[Operation] = []
        self.backward = False
        self._alive: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind, name = kind_of(func), _name(func)
        if kind is not None:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.add(
                name, kind, inputs, outputs, _flops(func, args, kwargs or {}, result), traffic(name, inputs, outputs)
            )
        return result

    def add(self, name: str, kind: str, inputs: list[Tensor], outputs: list[Tensor], flops: float, size: float) -> None:
        """Record one call."""
        shapes = " ".join("x".join(map(str, tensor.shape)) or "1" for tensor in inputs[:3])
        self.operations.append(
            Operation(name, kind, shapes, flops, size, self.backward, self._places(inputs), self._places(outputs))
        )

    def _places(self, tensors: list[Tensor]) -> tuple[tuple[int, int], ...]:
        found: dict[int, int] = {}
        for tensor in tensors if self.places else ():
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = storage  # or another could take its key
            found[storage._cdata] = max(extent(tensor), found.get(storage._cdata, 0))
        return tuple(found.items())


@dataclass(frozen=True)
class Total:
    """Of one kind of operation."""

    calls: int
    flops: float
    bytes: float


def totals(operations: Iterable[Operation]) -> dict[str, Total]:
    """Return calls, operations and bytes of each kind."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for operation in operations:
        for place, value in enumerate((1, operation.flops, operation.bytes)):
            sums[operation.kind][place] += value
    return {kind: Total(int(calls), flops, size) for kind, (calls, flops, size) in sums.items()}


def fused(operations: Iterable[Operation]) -> Total:
    """Calls and bytes of the elementwise and moving operations if a compiler fused all that it possibly could.

    A value that only other such operations of the same pass use is never written; what comes from elsewhere is read
    once a pass. Reductions over a row count as fusible (a row fits a block), gathers and scatters as not.
    """
    operations = list(operations)
    made: dict[int, tuple[bool, bool]] = {}  # key -> (by a fusible operation, in the backward pass)
    kept: dict[int, int] = {}
    loaded: dict[tuple[int, bool], int] = {}
    calls, size = 0, 0.0
    for operation in operations:
        fuses = _fuses(operation)
        for key, extent_ in operation.reads:
            by_fusible, in_backward = made.get(key, (False, operation.backward))
            if by_fusible and not (fuses and in_backward == operation.backward):
                kept[key] = max(extent_, kept.get(key, 0))
            if fuses and not (by_fusible and in_backward == operation.backward):
                loaded[key, operation.backward] = max(extent_, loaded.get((key, operation.backward), 0))
        for key, _ in operation.writes:
            made[key] = (fuses, operation.backward)
        if not fuses and operation.kind in (ELEMENTWISE, MOVING):
            calls, size = calls + 1, size + operation.bytes
    used = {key for operation in operations for key, _ in operation.reads}
    results = {
        key: extent_
        for operation in operations
        if _fuses(operation)
        for key, extent_ in operation.writes
        if key not in used
    }
    return Total(
        calls + len(kept) + len(results), 0.0, size + sum(kept.values()) + sum(loaded.values()) + sum(results.values())
    )


def _fuses(operation: Operation) -> bool:
    return operation.kind in (ELEMENTWISE, MOVING) and not any(
        word in operation.name for word in ("index", "gather", "scatter", "embedding", "sort", "topk", "cumsum")
    )


def _is_view(func: Any) -> bool:
    """Whether the result is another look at an argument, which no kernel runs for."""
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info and not value.alias_info.is_write for value in returns)


def _name(func: Any) -> str:
    return func._schema.name.removeprefix("aten::")


def kind_of(func: Any) -> str | None:
    """Of an aten operation; None if no kernel runs for it."""
    name = _name(func)
    if name in _NOTHING or _is_view(func):
        return None
    if "attention" in name:
        return ATTENTION
    if func._overloadpacket in flop_registry:
        return MATRIX
    return MOVING if name in _MOVES else ELEMENTWISE


def _flops(func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> float:
    if _name(func) in _CPU_ATTENTION:  # PyTorch counts those of a GPU alone
        shapes = [tensor.shape for tensor in args[:4] if isinstance(tensor, Tensor)]
        return float(sdpa_backward_flop_count(*shapes) if "backward" in _name(func) else sdpa_flop_count(*shapes[:3]))
    formula = flop_registry.get(func._overloadpacket)
    flops = float(formula(*args, **kwargs, out_val=result)) if formula else 0.0
    # by document it is causal, which PyTorch does not count; that rows are cut at documents is not counted either
    return flops / 2 if _name(func).startswith("_efficient_attention") else flops


def traffic(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    """Bytes that an operation reads and writes if nothing is cached."""
    if name in _READS_ROWS and inputs:
        return 2.0 * sum(map(extent, outputs)) + sum(map(extent, inputs[1:]))
    if name in _WRITES_ROWS and len(inputs) > 1:
        return 3.0 * extent(inputs[-1]) + sum(map(extent, inputs[1:-1]))  # read, changed in place
    if name in ("zero_", "fill_"):
        return extent(inputs[0])
    read = {id(tensor): extent(tensor) for tensor in inputs}
    if name == "copy_":
        read.pop(id(inputs[0]), None)  # only written
    return float(sum(read.values()) + sum(map(extent, outputs)))


def extent(tensor: Tensor) -> int:
    """Bytes that a tensor's values lie in; what is repeated by a stride of 0 lies there once."""
    values = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        values *= size if stride else 1
    return values * tensor.element_size()


class _Attention(torch.autograd.Function):
    """PyTorch's memory-efficient kernel as far as counting goes: no scores are kept, a mask is read by every head.

    A mask keeps the kernel from leaving out the half that causality hides: `hidden` is the share it leaves out.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, hidden: float, counter: OperationCounter
    ) -> Tensor:
        y = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, y)
        bias = 0 if mask is None else q.shape[1] * extent(mask)
        ctx.more = bias, hidden, counter
        flops = (1 - hidden) * sdpa_flop_count(q.shape, k.shape, v.shape)
        counter.add("attention", ATTENTION, [q, k, v], [y], flops, 4.0 * extent(q) + bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y = ctx.saved_tensors
        bias, hidden, counter = ctx.more
        flops = (1 - hidden) * sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
        gradients = [torch.empty_like(tensor) for tensor in (q, k, v)]
        counter.add("attention_backward", ATTENTION, [grad, q, k, v, y], gradients, flops, 8.0 * extent(q) + bias)
        return *gradients, None, None, None


@contextmanager
def _stand_in_attention(counter: OperationCounter) -> Iterator[None]:
    """On the meta device PyTorch would choose the kernel that keeps all scores."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **_: Any
    ) -> Tensor:
        return _Attention.apply(q, k, v, attn_mask, 0.5 if is_causal else 0.0, counter)

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield


_IN_PLACE = {"softmax_error": 0, "swiglu_backward": 1}  # the argument that a fused kernel reads and writes


@contextmanager
def _counted_launches(counter: OperationCounter) -> Iterator[None]:
    """Count the fused kernels, which no dispatch mode sees: each reads or writes its tensors once."""

    def launch(name: str, _programs: int, *arguments: Any, **_more: Any) -> None:
        tensors = list({id(t): t for t in arguments if isinstance(t, Tensor)}.values())
        size = sum(map(extent, tensors))
        if name in _IN_PLACE:
            size += extent(arguments[_IN_PLACE[name]])
        if name == "combine_backward":  # reads a token's gradient for each of its rows
            size += extent(arguments[1]) - extent(arguments[0])
        counter.add(name, ELEMENTWISE, tensors, [], 0.0, float(size))

    with ExitStack() as stack:
        for module in (likelihood, norms, products, routing):
            stack.enter_context(mock.patch.object(module, "launch", launch))
        yield


def expert_layer(config: ModelConfig) -> nn.Module:
    """The training form, on one process, without the random order in which DeepSpeed fills a capped expert."""
    from model.moe import DeepSpeedMoE  # imports DeepSpeed, some seconds that a dense model need not wait

    layer = DeepSpeedMoE(config)
    gate: Any = layer.moe.deepspeed_moe.gate
    gate.use_rts = False  # draws numbers, of which the meta device has none
    return layer


def count_step(
    config: ModelConfig,
    *,
    micro_batch: int,
    seq_len: int,
    dtype: torch.dtype = torch.float16,
    kernels: Sequence[str] = (),
) -> list[Operation]:
    """Forward and backward pass of one micro-batch, without memory; where it is not known, experts get even shares."""
    with on_meta_device():
        model = CausalLM(replace(config, ep_size=1), expert_layer).to(dtype)
    model.use_kernels(Kernels.fused(kernels))
    ids = torch.empty((micro_batch, seq_len), dtype=torch.long, device="meta")
    counter = OperationCounter()
    with _stand_in_attention(counter), _counted_launches(counter), counter:
        total = model(ids, ids).total
        counter.backward = True
        total.backward()
    return counter.operations

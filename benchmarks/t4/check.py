"""Is the pricing right? A pass on this CPU, counted and priced with its measured rates, beside the measured time."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import copy_bandwidth, matrix_rate
from benchmarks.t4.figures import Machine
from benchmarks.t4.operations import ATTENTION, Operation, OperationCounter, expert_layer, kind_of
from model import CausalLM, ModelConfig
from model.init import init_weights

ROWS, SEQ_LEN, ROUNDS = 8, 512, 2


def check_on_cpu(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Predicted and measured seconds of a forward and backward pass, with the rates that the prediction used."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        machine = cpu_machine(config, dtype)
        measured, kinds, operations = _measured(config, dtype)
    finally:
        torch.set_num_threads(before)
    expected: defaultdict[str, float] = defaultdict(float)
    for operation in operations:
        expected[operation.kind] += price(operation, machine) + machine.launch
    predicted = sum(expected.values())
    return {
        "kinds": {kind: {"predicted": expected[kind], "measured": kinds[kind]} for kind in expected},
        "dtype": str(dtype).removeprefix("torch."),
        "rows": ROWS,
        "seq_len": SEQ_LEN,
        "predicted": predicted,
        "measured": measured,
        "ratio": measured / predicted,
        "matrix": machine.matrix,
        "attention": machine.attention,
        "attention_backward": machine.attention_backward,
        "bandwidth": machine.bandwidth,
        "launch": machine.launch,
    }


def price(operation: Operation, machine: Machine) -> float:
    """Seconds of one operation, without its start: what takes longer of computing and of moving."""
    rate = machine.matrix
    if operation.kind == ATTENTION:
        rate = machine.attention_backward if operation.backward else machine.attention
    return max(operation.flops / rate, operation.bytes / machine.bandwidth)


def cpu_machine(config: ModelConfig, dtype: torch.dtype) -> Machine:
    """One thread of this CPU: matrix products of an expert's shape, a large copy, attention as in the model."""
    tokens = ROWS * SEQ_LEN * config.num_experts_per_tok // config.num_experts
    matrix = matrix_rate(dtype, tokens, config.moe_intermediate_size, config.hidden_size)
    one = torch.zeros(1)
    return Machine(matrix, *_attention(config, dtype), copy_bandwidth(), _best(lambda: one + one, calls=1000) / 1000)


def _attention(config: ModelConfig, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s forward and backward, with a mask."""
    shape = ROWS, config.num_attention_heads, SEQ_LEN, config.head_size
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(ROWS, 1, SEQ_LEN, SEQ_LEN, dtype=torch.bool).tril()
    flops = 4.0 * ROWS * config.num_attention_heads * SEQ_LEN**2 * config.head_size

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    there = _best(forward)
    both = _best(lambda: forward().sum().backward())
    return flops / there, 2.5 * flops / (both - there)


def _best(work: Callable[[], object], calls: int = 1, rounds: int = 7) -> float:
    """Seconds of the fastest of some rounds, the first left out."""
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


class _Timer(TorchDispatchMode):
    """Seconds of every operation by kind; its own work, some microseconds a call, is not in them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        begun = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        took = time.perf_counter() - begun
        if (kind := kind_of(func)) is not None:
            self.seconds[kind] += took
        return result


def _measured(config: ModelConfig, dtype: torch.dtype) -> tuple[float, dict[str, float], list[Operation]]:
    """Seconds of a forward and backward pass of the real network on real tensors.

    Then those of its kinds of operations, from one more pass, and the operations, from yet another.
    """
    model = CausalLM(config, expert_layer)
    init_weights(model, config, 0)
    model = model.to(dtype)
    ids = torch.randint(3, config.vocab_size, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(0))

    def work(counter: OperationCounter | None = None) -> None:
        total = model(ids, ids).total
        if counter is not None:
            counter.backward = True
        total.backward()
        model.zero_grad(set_to_none=True)

    found = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    with _Timer() as timer:
        work()
    with OperationCounter(places=False) as counter:
        work(counter)
    return statistics.median(found[1:]), timer.seconds, counter.operations

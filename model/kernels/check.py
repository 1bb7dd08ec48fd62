"""Which fused kernels a run computes with: on the card at hand each is compared with its plain form, then timed.

A kernel that does not run, disagrees or is slower is left out, so a card that nobody has tried cannot be harmed.
Outputs and gradients in the run's precision are compared with those of the plain form in fp32.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.config import ModelConfig
from model.kernels import NAMES, Kernels
from model.layers import rotary
from model.moe import route

TOLERANCE = 8
"""The largest difference that passes, in units of the precision's rounding and of the tensor's largest value: 0.8 % in
fp16, 6 % in bf16, where a mistake of a kernel is tens of percent or all."""
ODD = ModelConfig(
    vocab_size=1003,
    hidden_size=88,
    num_attention_heads=3,
    num_key_value_heads=3,
    head_dim=24,
    moe_intermediate_size=56,
    num_experts=3,
    num_experts_per_tok=2,
)
_FEW_TOKENS = 74, 333
_MOST_TOKENS, _LENGTH, _LOGITS = 8192, 512, 2**22  # of the check at the run's own sizes
_ROUNDS, _WARM_UP = 9, 2

Call = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """Inputs of one operation, in fp32 on the CPU: those that have a gradient, and what else the call takes."""

    call: Call
    """Given Kernels, the `inputs` and the `others`, returns the outputs."""
    inputs: tuple[Tensor, ...]
    others: tuple[Any, ...] = ()

    def on(self, device: torch.device, dtype: torch.dtype) -> Case:
        """Return the case with its inputs rounded to `dtype`."""
        others = tuple(other.to(device) if isinstance(other, Tensor) else other for other in self.others)
        return replace(self, inputs=tuple(t.to(device, dtype) for t in self.inputs), others=others)

    def run(self, kernels: Kernels) -> list[Tensor]:
        """Return the outputs, and the gradients of the inputs for outputs' gradients that are always the same."""
        inputs = [t.detach().requires_grad_() for t in self.inputs]
        outputs = self.call(kernels, *inputs, *self.others)
        if not outputs[0].requires_grad:
            return [t.detach() for t in outputs]
        directions = [torch.linspace(-1, 1, t.numel(), device=t.device).view_as(t).sin().to(t.dtype) for t in outputs]
        return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, inputs, directions)]


class _Draw:
    """Random inputs for a network of some shape and so many tokens."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        self.config, self.tokens = config, tokens
        self.rng = torch.Generator().manual_seed(tokens)
        self.length = min(tokens, _LENGTH)
        self.rows = tokens // self.length

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.rng) * scale

    def matrix(self, outputs: int, inputs: int) -> Tensor:
        return self.normal(outputs, inputs, scale=inputs**-0.5)

    def routed(self) -> tuple[Tensor, Tensor, list[int]]:
        config = self.config
        expert_SK = (
            torch.rand(self.tokens, config.num_experts, generator=self.rng).topk(config.num_experts_per_tok).indices
        )
        return route(expert_SK, config.num_experts)[:3]

    def add_norm(self) -> Case:
        shape, eps = (self.tokens, self.config.hidden_size), self.config.rms_norm_eps
        inputs = self.normal(*shape), self.normal(*shape), self.normal(shape[1])
        return Case(lambda k, x, update, weight: k.add_norm(x, update, weight, eps), inputs)

    def project(self) -> Case:
        config = self.config
        widths = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
        x, weights = self.normal(self.tokens, config.hidden_size), [self.matrix(n, config.hidden_size) for n in widths]
        return Case(lambda k, x, *weights: k.project(x, list(map(_Linear, weights))), (x, *weights))

    def norm_rotate(self) -> Case:
        config, eps = self.config, self.config.rms_norm_eps
        position = torch.arange(self.length).expand(self.rows if self.rows < 3 else 1, -1)
        angles = rotary(position, config.head_size, config.rope_theta, torch.float32)
        x = self.normal(self.rows, self.length, config.num_attention_heads, config.head_size)
        call = lambda k, x, weight, *angles: (k.norm_rotate(x, weight, eps, *angles),)  # noqa: E731
        return Case(call, (x, self.normal(config.head_size)), angles)

    def feed_forward(self) -> Case:
        config, (source_P, _, sizes) = self.config, self.routed()
        shapes = [(config.moe_intermediate_size, config.hidden_size)] * 2
        shapes.append((config.hidden_size, config.moe_intermediate_size))
        inputs = self.normal(len(source_P), config.hidden_size), *(self.matrix(*s) for s in shapes * config.num_experts)
        return Case(lambda k, x, *more: (k.feed_forward(x, more[-1], _experts(more[:-1])),), inputs, (sizes,))

    def router_logits(self) -> Case:
        config = self.config
        inputs = self.normal(self.tokens, config.hidden_size), self.matrix(config.num_experts, config.hidden_size)
        return Case(lambda k, x, weight: (k.router_logits(x, weight),), inputs)

    def dispatch(self) -> Case:
        x, (source_P, row_SK, _) = self.normal(self.tokens, self.config.hidden_size), self.routed()
        return Case(lambda k, x, *places: (k.dispatch(x, *places),), (x,), (source_P, row_SK))

    def combine(self) -> Case:
        source_P, row_SK, _ = self.routed()
        inputs = self.normal(len(source_P), self.config.hidden_size), torch.rand(row_SK.shape, generator=self.rng)
        call = lambda k, y, weight, *places: (k.combine(y, weight.float(), *places),)  # noqa: E731
        return Case(call, inputs, (row_SK, source_P))

    def softmax_error(self) -> Case:
        vocabulary = self.config.vocab_size
        tokens = max(1, min(self.tokens, _LOGITS // vocabulary))
        target = torch.randint(vocabulary, (tokens,), generator=self.rng)
        logits = self.normal(tokens, vocabulary, scale=4.0)
        return Case(lambda k, x, target: k.softmax_error(x.detach().clone(), target), (logits,), (target,))

    def packed_rows(self) -> Case:
        config = self.config
        # BOS after EOS, which begins a document, is one in 16 or 324
        kinds = 4 if self.tokens < _LENGTH else 18
        ids = torch.randint(kinds, (self.rows, self.length), generator=self.rng)
        heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        q_k_v = (self.normal(self.rows, n, self.length, config.head_size) for n in heads)
        return Case(_attend, tuple(q_k_v), (ids,))


def make_case(name: str, config: ModelConfig, tokens: int) -> Case:
    """Return a case of an operation, for a network of this shape and so many tokens."""
    return getattr(_Draw(config, tokens), name)()


def _attend(kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> tuple[Tensor]:
    rows = kernels.packed_rows(ids.cpu(), 1, 2, mask_documents=True, dtype=q.dtype, device=q.device)
    assert rows is not None
    return (rows.attend(q, k, v),)


@dataclass
class _Linear:
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@dataclass
class _Expert:
    gate_proj: Any
    up_proj: Any
    down_proj: Any


def _experts(weights: Sequence[Tensor]) -> list[_Expert]:
    projections = list(map(_Linear, weights))
    return [_Expert(*projections[i : i + 3]) for i in range(0, len(projections), 3)]


def difference(case: Case, name: str, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest difference of the fused form in `dtype` from the plain one in fp32, in units of TOLERANCE."""
    rounded = case.on(device, dtype)
    expected = rounded.on(device, torch.float32).run(Kernels())
    worst = 0.0
    for found, wanted in zip(rounded.run(Kernels.fused([name])), expected, strict=True):
        if wanted.numel():
            allowed = TOLERANCE * torch.finfo(dtype).eps * wanted.abs().max()
            apart = ((found.float() - wanted).abs().max() / allowed.clamp_min(1e-30)).item()
            worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def shapes(config: ModelConfig, tokens: int) -> list[tuple[ModelConfig, int]]:
    """Return the shapes and tokens that a kernel is checked at: odd ones, and the run's own."""
    return [(ODD, odd) for odd in _FEW_TOKENS] + [(config, min(tokens, _MOST_TOKENS))]


def problem(name: str, config: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a fused kernel on this device, if anything."""
    try:
        for shape, count in shapes(config, tokens):
            if (apart := difference(make_case(name, shape, count), name, device, dtype)) > 1:
                return f"differs from plain PyTorch by {apart:.3g} times the tolerance at {count:,} tokens"
    except Exception as error:  # whatever a compiler or a driver may raise
        if device.type == "cuda":
            _check_alive(name)
        message = next(iter(str(error).strip().splitlines()), "no message")
        return f"does not run here ({type(error).__name__}: {message[:120]})"
    return None


def _check_alive(name: str) -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise UserError(f"the fused kernel {name} failed in a way that no process survives: --kernels plain") from error


def times(name: str, config: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return milliseconds of the plain and of the fused form, both ways, medians of rounds in turn; CUDA only."""
    case = make_case(name, config, min(tokens, _MOST_TOKENS)).on(device, dtype)
    forms = Kernels(), Kernels.fused([name])
    found: list[list[float]] = [[], []]
    for _ in range(_WARM_UP + _ROUNDS):
        for kernels, seconds in zip(forms, found, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            case.run(kernels)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end))
    plain, fused = (statistics.median(seconds[_WARM_UP:]) for seconds in found)
    return plain, fused


def choose(
    config: ModelConfig,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    earlier: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Return the operations to compute with fused kernels, and a line for each that is left out.

    `earlier`: those that a continued run has computed with so far, which are checked but not timed again.
    """
    chosen, lines = [], []
    for name in NAMES if earlier is None else earlier:
        why = problem(name, config, tokens, device, dtype)
        if why is None and earlier is None:
            plain, fused = times(name, config, tokens, device, dtype)
            if fused > plain:
                why = f"is slower than plain PyTorch here ({fused:.3f} ms against {plain:.3f})"
        if why is None:
            chosen.append(name)
        else:
            lines.append(f"fused kernel {name} left out: it {why}")
    return chosen, lines

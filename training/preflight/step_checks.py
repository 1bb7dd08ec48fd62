"""Checks of what a step does: gradients, what becomes of them, and whether one batch can be learned by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from model.hf import hf_name, is_expert
from training.engine.internals import gradient, loss_scale, owned_weights
from training.engine.protocol import Engine
from training.monitoring.weight_updates import Change, WeightSample
from training.preflight.report import Check, failed, passed, warned
from training.preflight.trial_engine import Step, TrialEngine
from training.processes.process_group import sum_over_ranks

REDUCED = 100
"""The second step's rate is the peak divided by this: late in a run, rates are at a tenth and gradients agree less."""
_ENOUGH_ROUTES = 50  # of an even share, below which an expert may be left out by chance
_KEPT = 1.3  # a gradient of the same batch that is so many times the first one has something added to it
_LOST_WARNS, _LOST_FAILS = 0.03, 0.25
_LARGE, _TOO_LARGE = 0.45, 0.7  # rms of one update / rms of the weights, at the peak rate
_FALL_FAILS, _FALL_WARNS = 0.06, 0.1  # of ln(V), in OVERFIT_STEPS steps at the peak rate
OVERFIT_STEPS = 25
_FEW_TO_JUDGE = 8


# --- gradients --------------------------------------------------------------------------------------------------------


class GradientWatch:
    """Sums of squares of every parameter's own gradient, as the backward pass makes it."""

    def __init__(self, bench: TrialEngine) -> None:
        self.bench = bench
        self.squares: dict[str, Tensor] = {}
        module = bench.engine.module
        self.names = {hf_name(name, module) for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.handles = [
            parameter.register_hook(partial(self._add, hf_name(name, module)))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
        for layer in module.expert_layers():
            layer.route_counts.zero_()

    def _add(self, name: str, gradient: Tensor) -> None:
        square = gradient.detach().float().square().sum().double()
        self.squares[name] = self.squares[name] + square if name in self.squares else square

    def finish(self) -> GradientFigures:
        """Take the hooks away; collective."""
        for handle in self.handles:
            handle.remove()
        squares: dict[str, float] = {}
        for rank in self.bench.gather({name: float(self.squares.get(name, 0.0)) for name in self.names}):
            for name, value in rank.items():
                squares[name] = squares.get(name, 0.0) + value
        layers = self.bench.engine.module.expert_layers()
        routes = [sum_over_ranks(layer.route_counts)[1:].tolist() for layer in layers]
        return GradientFigures(squares, routes)


@dataclass(frozen=True)
class GradientFigures:
    """By Hugging Face name, over all ranks; `routes` counts the tokens of each expert of each layer."""

    squares: dict[str, float]
    routes: list[list[int]] = field(default_factory=list)


def judge_gradients(found: GradientFigures) -> Check:
    """Every parameter, every expert and the router learn."""
    broken = [name for name, square in found.squares.items() if not math.isfinite(square)]
    if broken:
        return failed(
            "gradients",
            f"not finite in {_some(broken)}",
            "a loss of nan or inf is at work: look at the batch and the precision",
        )
    unused = {
        f"model.layers.{layer}.mlp.experts.{expert}."
        for layer, counts in enumerate(found.routes)
        for expert, count in enumerate(counts)
        if not count
    }
    none = [name for name, square in found.squares.items() if square == 0]
    unexplained = [name for name in none if not any(name.startswith(prefix) for prefix in unused)]
    if unexplained:
        return failed(
            "gradients",
            f"none in {_some(unexplained)}",
            "these weights would never learn: something cuts "
            "them off from the loss (detach, requires_grad, a path that is not used)",
        )
    if unused:
        return _judge_unused(found.routes, len(unused))
    experts = sum(len(counts) for counts in found.routes)
    also = f", {experts} experts and {len(found.routes)} routers among them" if experts else ""
    return passed("gradients", f"finite and not zero in all {len(found.squares)} parameters{also}")


def _judge_unused(routes: list[list[int]], unused: int) -> Check:
    fewest = min(sum(counts) / len(counts) for counts in routes)
    total = sum(len(counts) for counts in routes)
    text = f"{unused} of {total} experts got no token (an even share is {fewest:,.0f} tokens)"
    if fewest >= _ENOUGH_ROUTES:
        return failed(
            "gradients",
            f"{text}: the router has collapsed",
            "look at the router's initial weights, and keep --router_aux_loss_coef above 0",
        )
    return warned("gradients", text, "too few tokens to tell; --num_experts may be too many for the batch")


def reduced_norm(engine: Engine) -> float:
    """Norm of the gradients that AdamW is about to use, over all ranks; nan where DeepSpeed does not show them.

    Muon's are left out: DeepSpeed has orthogonalised them by now, which hides their size.
    """
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for parameter in engine.module.parameters():
        if getattr(parameter, "use_muon", False):
            continue
        if (reduced := gradient(parameter)) is not None:
            total += reduced.detach().double().square().sum()
    return math.sqrt(sum_over_ranks(total).item()) / (loss_scale(engine) or 1.0) or math.nan


def gradient_norms(
    bench: TrialEngine, rows: list[int], steps: int, first: Callable[[], None]
) -> tuple[list[tuple[float, float]], Step]:
    """([(norm before the step, DeepSpeed's norm of it)], the last step) on one batch at rate 0; collective.

    `first` is called when the gradients of the first step are there.
    """
    norms, still = [], [0.0] * len(bench.peak)
    for number in range(steps):
        before: list[float] = []

        def look(before: list[float] = before, number: int = number) -> None:
            before.append(reduced_norm(bench.engine))
            if number == 0:
                first()

        taken = bench.step(rows, still, before=look)
        norms.append((before[-1], taken.norm))
    return norms, taken


def judge_cleared(norms: list[tuple[float, float]]) -> Check:
    """Nothing moves at rate 0, so the gradient of one batch stays what it is, unless the last one is still in it."""
    ratios = [now / then for pair in norms[1:] for then, now in zip(norms[0], pair, strict=True) if then > 0]
    growth = max(filter(math.isfinite, ratios), default=math.nan)
    if growth > _KEPT:
        return failed(
            "gradients_cleared",
            f"the gradient of one batch grows to {growth:.2f} times its size in "
            f"{len(norms)} steps in which no weight moves: old gradients are still in it",
            "gradients must be set to zero after every step",
        )
    if math.isnan(growth):
        return warned("gradients_cleared", "no gradient norm to compare", "look at the gradients line")
    return passed("gradients_cleared", f"one batch has the same gradient {len(norms)} steps in a row")


# --- updates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateFigures:
    """Of one step on one batch, over all ranks, by parameter name; `dtype` is that of the optimizer's own weights."""

    at_peak: dict[str, Change]
    reduced: dict[str, Change]
    dtype: str

    @property
    def ratio(self) -> float:
        """Mean over the matrices of rms(change) / rms(weight) at the peak rate."""
        ratios = [change.ratio for name, change in self.at_peak.items() if "norm" not in name]
        return sum(ratios) / max(1, len(ratios))

    @property
    def lost(self) -> float:
        """Share of the weights that stay what they were at a hundredth of the peak rate, 0..1."""
        weights = sum(change.weights for change in self.reduced.values())
        return sum(change.unchanged for change in self.reduced.values()) / max(1, weights)


def updates(bench: TrialEngine, rows: list[int]) -> UpdateFigures:
    """A step at the peak rate and one at a hundredth of it; collective."""
    found = []
    for divisor in (1, REDUCED):
        sample = WeightSample(bench.engine)
        sample.snapshot()
        bench.step(rows, [rate / divisor for rate in bench.peak])
        found.append(_merge(bench.gather(sample.changes())))
    kinds = {str(weights.dtype).removeprefix("torch.") for weights in owned_weights(bench.engine).values()}
    return UpdateFigures(*found, dtype=", ".join(sorted(kinds)))


def _merge(ranks: list[dict[str, Change]]) -> dict[str, Change]:
    merged: dict[str, Change] = {}
    for rank in ranks:
        for name, change in rank.items():
            other = merged.get(name)
            if other:
                total = change.weights + other.weights
                mean = (change.ratio * change.weights + other.ratio * other.weights) / total
                change = Change(change.unchanged + other.unchanged, total, mean)
            merged[name] = change
    return merged


def judge_updates(found: UpdateFigures, still: set[str]) -> Check:
    """Every weight takes its update. `still` are parameters without a gradient, which the gradients line tells of."""
    stuck = [name for name, change in found.at_peak.items() if change.unchanged == change.weights and name not in still]
    mend = (
        f"the optimizer's weights are {found.dtype}, too coarse for this rate: keep fp32 master copies "
        "(bf16.bf16_master_weights_and_grads off, or fp16)"
        if "float32" not in found.dtype
        else "look at the rate of this group and at what the optimizer was given"
    )
    if stuck:
        return failed(
            "updates",
            f"a step at the peak rate leaves {len(stuck)} of {len(found.at_peak)} parameters as "
            f"they were: {_some(stuck)}",
            mend,
        )
    text = f"{found.lost:.1%} of the weights do not move at a hundredth of the peak rate"
    if found.lost > _LOST_FAILS:
        return failed("updates", f"{text}: their updates round away", mend)
    if found.lost > _LOST_WARNS:
        return warned("updates", text, mend)
    return passed(
        "updates",
        f"all {len(found.at_peak)} parameters move, by {found.ratio:.2g} of their size at the peak rate; {text}",
    )


# --- one batch, learned by heart --------------------------------------------------------------------------------------


def overfit(bench: TrialEngine, rows: list[int], seconds: float) -> list[float]:
    """Losses of steps on one batch at the peak rate, until halved, OVERFIT_STEPS are done or time is up; collective.

    Few steps say little, so a slow machine may take twice the `seconds` for them.
    """
    losses: list[float] = []
    started = time.monotonic()
    while len(losses) < OVERFIT_STEPS:
        losses.append(bench.step(rows, bench.peak).loss)
        limit = seconds if len(losses) >= _FEW_TO_JUDGE else 2 * seconds
        late = time.monotonic() - started > limit
        if bench.agree(late or losses[-1] < losses[0] / 2 or not math.isfinite(losses[-1])):
            break
    return losses


def judge_overfit(start: float, losses: list[float], ratio: float, vocab_size: int) -> Check:
    """`start` is the untrained loss, `ratio` the size of the first update at the peak rate (see UpdateFigures)."""
    end, steps, highest = losses[-1], len(losses), max(losses)
    text = f"one batch goes from {start:.3f} to {end:.3f} nats in {steps} steps at the peak rate"
    size = f"an update is {ratio:.2g} of the weights' size"
    too_high = "the rate looks too high: try a tenth or a hundredth of it"
    if not all(map(math.isfinite, losses)):
        return failed("overfit", f"the loss of one batch becomes {end:g} at the peak rate ({size})", too_high)
    if ratio > _TOO_LARGE:
        return failed("overfit", f"{text}, by way of {highest:.3f}; {size}", too_high)
    if end > start and ratio > _FALL_FAILS:
        return failed("overfit", f"{text}; {size}", too_high)
    if steps < _FEW_TO_JUDGE and end > start / 2:
        return warned("overfit", f"{text}; time for no more", "nothing wrong so far, but this is slow: see speed")
    fall = (start - end) / math.log(vocab_size) * OVERFIT_STEPS / steps
    if fall < _FALL_FAILS:
        return failed(
            "overfit",
            f"{text}; {size}",
            "the rate looks too low by far: try 10 or 100 times of it"
            if ratio < _FALL_FAILS
            else "the updates are large enough, so look at the loss and the data",
        )
    if ratio > _LARGE:
        return warned("overfit", f"{text}; {size}", "the rate is high: watch the first hundred steps")
    if fall < _FALL_WARNS:
        return warned("overfit", f"{text}; {size}", "slow: the rate may be too low")
    return passed("overfit", f"{text}; {size}")


def judge_no_rate(total_steps: int) -> Check:
    """DeepSpeed's warm-up has a rate of 0 in its first two steps, so a run of two learns nothing."""
    return failed(
        "warm_up",
        f"the schedule's rate is 0 in all {total_steps:,} steps: nothing would be learned",
        "train for more steps (--epochs or --max_steps, or more text), or look at the scheduler's rates",
    )


def judge_warmup(rates: list[list[float]], total_steps: int, ratio: float, rise: float) -> Check:
    """`rise` is how far one batch's loss went above its start (nats) in the steps at the peak rate."""
    sizes = [sum(step) for step in rates]
    steps = next(step for step, size in enumerate(sizes) if size >= 0.95 * max(sizes))
    text = f"95 % of the peak rate is reached after {steps:,} of {total_steps:,} steps"
    if steps > 3 or (ratio < 0.05 and rise < 0.1):
        return passed("warm_up", text)
    return warned(
        "warm_up",
        f"{text}, and its updates are {ratio:.2g} of the weights' size",
        "let the rate rise: --set scheduler.params.warmup_num_steps="
        f"{min(max(10, total_steps // 50), max(1, total_steps // 2))}",
    )


def _some(names: list[str]) -> str:
    kinds = sorted(names, key=lambda name: (is_expert(name), name))
    return ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")

"""Checks of what a step does: gradients, what becomes of them, and whether one batch can be memorized."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.hf import hf_name, is_expert
from training.engine.internals import gradient, loss_scale, master_weights
from training.engine.protocol import Engine
from training.monitoring.weight_updates import WeightSample
from training.preflight.report import Result, failed, passed, warned
from training.preflight.trial_engine import Step, TrialEngine
from training.processes.process_group import gather_from_ranks, sum_over_ranks

SMALL_LR_FACTOR = 0.01  # late in a run, learning rates are at a tenth of the peak and gradients agree less
OVERFIT_STEPS = 25
_FEW_STEPS = 8  # too few to say much
_ENOUGH_TOKENS = 50  # an even share for an expert, below which one may get none by chance
_GROWTH_FAILS = 1.3  # a gradient of the same batch that is so many times the first one has something added to it
_LOST_WARNS, _LOST_FAILS = 0.03, 0.25
_UPDATE_WARNS, _UPDATE_FAILS = 0.45, 0.7  # rms of one update / rms of the weights, at the peak learning rate
_TUNING_WARNS = 0.2  # the same for a network that is trained already
_TUNED_FALL_FAILS = 0.005  # of the loss at the start, in OVERFIT_STEPS steps
_FALL_FAILS, _FALL_WARNS = 0.06, 0.1  # of ln(V), in OVERFIT_STEPS steps at the peak learning rate


# --- gradients --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientFigures:
    """Gradients of one batch over all ranks, in two steps that move no weight."""

    squares: dict[str, float]
    """Hugging Face name -> sum of squares of its gradient in the first step."""
    expert_tokens: list[list[int]]
    """Tokens of each expert of each layer."""


def measure_gradients(trial: TrialEngine, rows: list[int]) -> tuple[GradientFigures, list[tuple[float, float]], Step]:
    """Take two steps on one batch at learning rate 0; collective.

    Return the gradients, for each step (norm before the step, DeepSpeed's norm of it), and the last step.
    """
    module = trial.engine.module
    trained = {hf_name(name, module): p for name, p in module.named_parameters() if p.requires_grad}
    squares: dict[str, Tensor] = {}

    def add_squares(name: str, gradient: Tensor) -> None:
        square = gradient.detach().float().square().sum().double()
        squares[name] = squares[name] + square if name in squares else square

    def step_with_norms() -> tuple[tuple[float, float], Step]:
        before: list[float] = []
        step = trial.step(rows, before_step=lambda: before.append(unstepped_norm(trial.engine)))
        return (before[-1], step.norm), step

    hooks = [parameter.register_hook(partial(add_squares, name)) for name, parameter in trained.items()]
    for layer in module.expert_layers():
        layer.route_counts.zero_()
    first, _ = step_with_norms()
    for hook in hooks:
        hook.remove()
    totals: dict[str, float] = {}
    for rank in gather_from_ranks({name: float(squares.get(name, 0.0)) for name in trained}):
        for name, square in rank.items():  # the experts of other ranks have other names
            totals[name] = totals.get(name, 0.0) + square
    tokens = [sum_over_ranks(layer.route_counts)[1:].tolist() for layer in module.expert_layers()]
    second, step = step_with_norms()
    return GradientFigures(totals, tokens), [first, second], step


def unstepped_norm(engine: Engine) -> float:
    """Return the norm, over all ranks, of the gradients that AdamW is about to use; nan where DeepSpeed hides them.

    Muon's are left out: DeepSpeed has orthogonalized them by now, which hides their size.
    """
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for parameter in engine.module.parameters():
        if getattr(parameter, "use_muon", False):
            continue
        if (reduced := gradient(parameter)) is not None:
            total += reduced.detach().double().square().sum()
    return math.sqrt(sum_over_ranks(total).item()) / (loss_scale(engine) or 1.0) or math.nan


def check_gradients(gradients: GradientFigures) -> Result:
    """Check that every parameter, every expert and the router learn."""
    squares, layers = gradients.squares, gradients.expert_tokens
    broken = [name for name, square in squares.items() if not math.isfinite(square)]
    if broken:
        hint = "a loss of nan or inf is at work: check the batch and the precision"
        return failed(f"not finite in {_first_names(broken)}", hint)
    unused = tuple(
        f"model.layers.{layer}.mlp.experts.{expert}."
        for layer, tokens in enumerate(layers)
        for expert, count in enumerate(tokens)
        if not count
    )
    cut_off = [name for name, square in squares.items() if square == 0 and not name.startswith(unused)]
    if cut_off:
        return failed(
            f"none in {_first_names(cut_off)}",
            "these weights would never learn: something cuts them off from the loss (detach, requires_grad, a path "
            "that is not used)",
        )
    experts = sum(map(len, layers))
    if unused:
        even_share = min(sum(tokens) / len(tokens) for tokens in layers)
        text = f"{len(unused)} of {experts} experts got no token (an even share is {even_share:,.0f} tokens)"
        if even_share < _ENOUGH_TOKENS:
            return warned(text, "too few tokens to tell; --num_experts may be too many for the batch")
        hint = "check the router's initial weights, and keep --router_aux_loss_coef above 0"
        return failed(f"{text}: the router has collapsed", hint)
    also = f", {experts} experts and {len(layers)} routers among them" if experts else ""
    return passed(f"finite and not zero in all {len(squares)} parameters{also}")


def check_gradients_cleared(norms: list[tuple[float, float]]) -> Result:
    """Check that the gradient of one batch stays what it is while nothing moves: no old one is added to it."""
    ratios = [now / then for pair in norms[1:] for then, now in zip(norms[0], pair, strict=True) if then > 0]
    growth = max(filter(math.isfinite, ratios), default=math.nan)
    if growth > _GROWTH_FAILS:
        return failed(
            f"the gradient of one batch grows to {growth:.2f} times its size in {len(norms)} steps in which no weight "
            "moves: old gradients are still in it",
            "gradients must be set to zero after every step",
        )
    if math.isnan(growth):
        return warned("no gradient norm to compare", "check the gradients line")
    return passed(f"one batch has the same gradient {len(norms)} steps in a row")


def _first_names(names: list[str]) -> str:
    names = sorted(names, key=lambda name: (is_expert(name), name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- updates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateFigures:
    """What two steps change of the weights over all ranks, one at the peak learning rate, one at a hundredth of it."""

    parameters: int
    stuck: frozenset[str]
    """The parameters of which no weight moves at the peak learning rate."""
    ratio: float
    """Mean over the matrices of rms(change) / rms(weight) there."""
    lost: float
    """Share of the weights that stay what they were at a hundredth of it, 0 to 1."""
    dtype: str
    """That of the optimizer's own weights."""


def measure_updates(trial: TrialEngine, rows: list[int]) -> UpdateFigures:
    """Take a step at the peak learning rate and one at a hundredth of it; collective."""
    steps = []
    for lr_factor in (1.0, SMALL_LR_FACTOR):
        sample = WeightSample(trial.engine)
        sample.snapshot()
        trial.step(rows, lr_factor)
        steps.append([part for rank in gather_from_ranks(sample.changes()) for part in rank.items()])
    peak, small = steps
    names, moved = {name for name, _ in peak}, {name for name, part in peak if part.unchanged < part.weights}
    ratios = [part.ratio for name, part in peak if "norm" not in name]
    lost = sum(part.unchanged for _, part in small) / max(1, sum(part.weights for _, part in small))
    dtypes = {str(weights.dtype).removeprefix("torch.") for weights in master_weights(trial.engine).values()}
    return UpdateFigures(
        parameters=len(names),
        stuck=frozenset(names - moved),
        ratio=sum(ratios) / max(1, len(ratios)),
        lost=lost,
        dtype=", ".join(sorted(dtypes)),
    )


def check_updates(updates: UpdateFigures, without_gradient: set[str]) -> Result:
    """Check that every weight moves; parameters without a gradient are left to the gradients check."""
    hint = "check the learning rate of this group and at what the optimizer was given"
    if "float32" not in updates.dtype:
        hint = (
            f"the optimizer's weights are {updates.dtype}, too coarse for this learning rate: keep fp32 master copies "
            "(bf16.bf16_master_weights_and_grads off, or fp16)"
        )
    every = updates.parameters
    if stuck := sorted(updates.stuck - without_gradient):
        what = f"leaves {len(stuck)} of {every} parameters as they were: {_first_names(stuck)}"
        return failed(f"a step at the peak learning rate {what}", hint)
    text = f"{updates.lost:.1%} of the weights do not move at a hundredth of the peak learning rate"
    if updates.lost > _LOST_FAILS:
        return failed(f"{text}: their updates round away", hint)
    if updates.lost > _LOST_WARNS:
        return warned(text, hint)
    moved = f"all {every} parameters move, by {updates.ratio:.2g} of their size at the peak learning rate"
    return passed(f"{moved}; {text}")


# --- one batch, memorized ---------------------------------------------------------------------------------------------


def overfit(trial: TrialEngine, rows: list[int], seconds: float) -> list[float]:
    """Return the losses of steps on one batch at the peak learning rate; collective.

    Stop after OVERFIT_STEPS, when the loss is halved or not finite, or when time is up. Few steps say little, so a slow
    machine may take twice the `seconds` for them.
    """
    losses: list[float] = []
    started = time.monotonic()
    while len(losses) < OVERFIT_STEPS:
        losses.append(trial.step(rows, 1.0).loss)
        limit = seconds if len(losses) >= _FEW_STEPS else 2 * seconds
        late = time.monotonic() - started > limit
        if trial.any_rank(late or losses[-1] < losses[0] / 2 or not math.isfinite(losses[-1])):
            break
    return losses


def check_overfit(start: float, losses: list[float], ratio: float, vocab_size: int) -> Result:
    """Check that one batch can be memorized.

    `start` is the untrained loss, `ratio` the size of the first update at the peak learning rate (see UpdateFigures).
    """
    end, steps, size = losses[-1], len(losses), f"an update is {ratio:.2g} of the weights' size"
    path = f"one batch goes from {start:.3f} to {end:.3f} nats in {steps} steps at the peak learning rate"
    text = f"{path}; {size}"
    too_high = "the learning rate looks too high: try a tenth or a hundredth of it"
    if not all(map(math.isfinite, losses)):
        return failed(f"the loss of one batch becomes {end:g} at the peak learning rate ({size})", too_high)
    if ratio > _UPDATE_FAILS:
        return failed(f"{path}, by way of {max(losses):.3f}; {size}", too_high)
    if end > start and ratio > _FALL_FAILS:
        return failed(text, too_high)
    if steps < _FEW_STEPS and end > start / 2:
        return warned(f"{path}; time for no more", "nothing wrong so far, but this is slow: see speed")
    fall = (start - end) / math.log(vocab_size) * OVERFIT_STEPS / steps
    if fall < _FALL_FAILS and ratio < _FALL_FAILS:
        return failed(text, "the learning rate looks too low by far: try 10 or 100 times of it")
    if fall < _FALL_FAILS:
        return failed(text, "the updates are large enough, so check the loss and the data")
    if ratio > _UPDATE_WARNS:
        return warned(text, "the learning rate is high: watch the first hundred steps")
    if fall < _FALL_WARNS:
        return warned(text, "slow: the learning rate may be too low")
    return passed(text)


def check_fine_tuning(start: float, losses: list[float], ratio: float) -> Result:
    """Check that one batch is learned by a trained network, which has no more to learn than `start` nats of it."""
    end, size = losses[-1], f"an update is {ratio:.2g} of the weights' size"
    text = f"one batch goes from {start:.3f} to {end:.3f} nats in {len(losses)} steps at the peak learning rate; {size}"
    too_high = "the learning rate looks too high, what was learned before would go: try a tenth of it"
    if not all(map(math.isfinite, losses)) or end > start or ratio > _UPDATE_FAILS:
        return failed(text, too_high)
    if ratio > _TUNING_WARNS:
        return warned(text, too_high)
    fall = (start - end) / start * OVERFIT_STEPS / len(losses) if start else 1.0
    if fall < _TUNED_FALL_FAILS and len(losses) >= _FEW_STEPS:
        return failed(text, "the learning rate looks too low by far, or nothing is left to learn: try 10 times of it")
    return passed(text)


def check_warm_up(learning_rates: list[list[float]], total_steps: int, ratio: float, rise: float) -> Result:
    """Check that large updates wait for a warm-up, and that the learning rate is not 0 throughout.

    (DeepSpeed's is in the first two steps.) `ratio` is the size of the first update at the peak learning rate, `rise`
    how far one batch's loss went above its start (nats) in the steps there.
    """
    sizes = [sum(step) for step in learning_rates]
    if not any(sizes):
        return failed(
            f"the schedule's learning rate is 0 in all {total_steps:,} steps: nothing would be learned",
            "train for more steps (--epochs or --max_steps, or more text), or check the scheduler's learning rates",
        )
    steps = next(step for step, size in enumerate(sizes) if size >= 0.95 * max(sizes))
    text = f"95 % of the peak learning rate is reached after {steps:,} of {total_steps:,} steps"
    if steps > 3 or (ratio < 0.05 and rise < 0.1):
        return passed(text)
    warmup = min(max(10, total_steps // 50), max(1, total_steps // 2))
    hint = f"let the learning rate rise: --set scheduler.params.warmup_num_steps={warmup}"
    return warned(f"{text}, and its updates are {ratio:.2g} of the weights' size", hint)

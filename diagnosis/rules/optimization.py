"""Causes in initialisation and optimizer: wrong scale, learning rate, rounding, gradients, divergence, experts."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from diagnosis.measurements import Measurements
from diagnosis.rules import Cause, Reasons
from evaluation.run_record import Curve, RunRecord, finite

# Our loss at step 0 is ln V within 0.15 (model/init.py); a nat above it, the network is confident in wrong tokens
# before it has seen any.
START_ABOVE = 1.0
# Share of the optimizer's weights that a log interval leaves unchanged, late in the run when the learning rate is low.
# In fp32 even an update of a millionth of the weight is seen: 1e-5 measured, also at a hundredth of the learning rate,
# except in experts that no token reaches. With everything in bf16, it was 0.02 at a usual peak learning rate and 0.3 at
# the end.
UNCHANGED = 0.05
# Relative change a step (update_ratio over the steps of a log interval). AdamW moves a weight of rms 0.02 by about the
# learning rate: 2e-4 gives 1e-2, so that a hundredth of a usual learning rate stays below 3e-3 at its peak.
STEP_TOO_SMALL = 3e-3
# What is learned must replace the random initialisation: matrices that have moved by less than a quarter of their
# initial size after so many steps have not been trained. At a usual learning rate 16 warm-up steps take them half way.
BARELY_MOVED, MOVED_STEPS = 0.25, 30
# Matrices that grew so far hold the optimizer's updates and nothing of their initialisation; a healthy run of some
# hundred steps ends at 2 to 3, with Muon at 6, and goes on growing: no proof by itself.
OVERGROWN = 8.0
# A step of half the weights forgets the one before; healthy ones are a tenth at most, and that during the warm-up.
STEP_TOO_LARGE = 0.5
SIGNS = 2
# A gradient that is added up over n steps grows like n; one that is not stays within a factor of a few.
GRADIENT_GROWTH, GRADIENT_ORDER = 3.0, 0.85
# Of Muon's, whose norm is the same at every step, the growth is over before the first quarter.
GROWN_SINCE_START, STEADY = 10.0, 0.97
# What a norm's weights, which begin at 1, have at least: 0.4 to 0.8 in healthy runs, 0.2 in one that copies its input.
# Long runs of large models have norms below that too, so the decay must be strong enough to explain it: e to the minus
# first is what it leaves of a weight without a gradient.
SHRUNK, STRONG_DECAY = 0.1, 1.0
# Of its peak: no schedule that still trains goes so low. A cosine that ends at 0 is below it for 6 % of the steps.
AT_REST, RESTED = 0.01, 0.2
JUMPED = 0.5  # nats above the best: noise between evaluations is hundredths
COLLAPSED = 0.25  # share of all experts that are dead


def embedding_scale(m: Measurements) -> Cause | None:
    """Find a loss before the first step that is far above that of a uniform guess."""
    curve = m.curve("val", "loss")[:1] or m.curve("train", "loss")[:1]
    if not curve or curve[0][0] > 1:
        return None
    start, chance = curve[0][1], math.log(m.vocab_size)
    if start - chance <= START_ABOVE:
        return None
    confidence = min(0.95, 0.8 + 0.05 * (start - chance))
    return Cause("embedding_scale", confidence, {"start_loss": {"start": start, "chance": chance}})


def low_precision_weights(m: Measurements) -> Cause | None:
    """Find updates that are lost to rounding: the optimizer steps, but its own weights do not change."""
    rates = m.curve("train", "lr")
    low = AT_REST * max((rate for _, rate in rates), default=0.0)
    # the last steps of a schedule that ends at 0 move few weights, whatever they are kept in
    at_rest = {step for (_, before), (step, rate) in pairwise(rates) if max(before, rate) < low}
    curve = [value for step, value in m.curve("train", "unchanged") if step > 1 and step not in at_rest]
    if not curve:
        return None
    idle = m.dead_experts  # an expert that no token reaches does not change either
    late = median(curve[-max(1, len(curve) // 3) :])
    if late < UNCHANGED + idle:
        return None
    return Cause("low_precision_weights", min(0.95, 0.75 + 0.4 * (late - idle)), {"unchanged": {"share": late}})


def gradients_kept(m: Measurements) -> Cause | None:
    """Find a gradient norm that climbs with the steps, as if each step's gradient were added to those before it."""
    curve = m.curve("train", "grad_norm")
    if len(curve) < 6:
        return None
    quarter, order = len(curve) // 4, _rank_correlation(curve)
    first, last = median(v for _, v in curve[:quarter]), median(v for _, v in curve[-quarter:])
    if order > STEADY and last > GROWN_SINCE_START * curve[0][1] > 0:
        first = curve[0][1]
    if first <= 0 or last < GRADIENT_GROWTH * first or order < GRADIENT_ORDER:
        return None
    return Cause("gradients_kept", 0.9, {"grad_growth": {"first": first, "last": last, "times": last / first}})


def _rank_correlation(curve: Curve) -> float:
    """Return Spearman's correlation of a curve's values with its steps."""
    n = len(curve)
    by_value = sorted(range(n), key=lambda i: curve[i][1])
    return 1 - 6 * sum((place - rank) ** 2 for rank, place in enumerate(by_value)) / (n * (n * n - 1))


def rate_too_low(m: Measurements) -> Cause | None:
    """Find weights that barely move, in each step and over all, in a run past its warm-up that uses no context yet."""
    if m.run is None or m.uses_context or m.run.steps < max(MOVED_STEPS, 2 * (_warmup_steps(m.run) or 0)):
        return None
    reasons: Reasons = {}
    step = max(_step_sizes(m), default=STEP_TOO_SMALL)
    if step < STEP_TOO_SMALL:
        reasons["small_steps"] = {"ratio": step}
    if m.weights is not None and m.weights.moved < BARELY_MOVED:
        reasons["barely_moved"] = {"share": m.weights.moved, "steps": m.run.steps}
    if m.weights is not None and m.weights.embedding_moved < BARELY_MOVED:
        reasons["embedding_barely_moved"] = {"share": m.weights.embedding_moved, "steps": m.run.steps}
    if not reasons:
        return None
    return Cause("rate_too_low", min(0.95, 0.6 + 0.15 * len(reasons)), reasons | _peak_rate(m))


def rate_too_high(m: Measurements) -> Cause | None:
    """Find steps that destroy what is learned; without a warm-up in the schedule the cause is no_warmup.

    It takes two signs of three. A falling schedule saves much of such a run, so what it has learned in the end is no
    sign.
    """
    reasons: Reasons = {}
    if m.weights is not None and m.weights.grown > OVERGROWN:
        reasons["overgrown"] = {"times": m.weights.grown}
    step = max(_step_sizes(m), default=0.0)
    if step > STEP_TOO_LARGE:
        reasons["large_steps"] = {"ratio": step}
    losses, limit = m.curve("train", "loss"), math.log(m.vocab_size) + 1
    peak = max((value for _, value in losses), default=0.0)
    if peak > limit > losses[0][1]:
        reasons["loss_jumped"] = {"peak": peak, "start": losses[0][1]}
    if m.run is None or len(reasons) < SIGNS:
        return None
    reasons |= _peak_rate(m)
    warmup = _warmup_steps(m.run)
    if warmup is not None and warmup <= 2:
        return Cause("no_warmup", 0.9, reasons | {"no_warmup_steps": {}})
    return Cause("rate_too_high", 0.85, reasons)


def norms_decayed(m: Measurements) -> Cause | None:
    """Find a norm whose weights are near 0, as weight decay makes them where it is not kept off the norms."""
    decay = m.run.optimizer.get("weight_decay") if m.run else None
    if m.weights is None or m.weights.smallest_norm >= SHRUNK or not finite(decay):
        return None
    curve = [(0, 0.0), *m.curve("train", "lr")]
    if decay * sum((step - before) * rate for (before, _), (step, rate) in pairwise(curve)) < STRONG_DECAY:
        return None
    return Cause("norms_decayed", 0.8, {"norm_shrunk": {"size": m.weights.smallest_norm, "decay": decay}})


def schedule_over(m: Measurements) -> Cause | None:
    """Find steps at a learning rate near 0, as in a run that goes on after its schedule has ended."""
    curve = m.curve("train", "lr")
    peak = max((rate for _, rate in curve), default=0.0)
    if m.run is None or not peak or curve[-1][1] > AT_REST * peak:
        return None
    last = max(step for step, rate in curve if rate > AT_REST * peak)
    share = 1 - last / m.run.steps
    if share < RESTED:
        return None
    return Cause("schedule_over", 0.8, {"no_rate_left": {"step": last, "steps": m.run.steps, "share": share}})


def _step_sizes(m: Measurements) -> list[float]:
    """Return the relative change a step, from that over each log interval.

    Over n steps, steps in one direction would add up like n and random ones like its root; real ones lie between.
    """
    sizes, before = [], 0
    for step, ratio in m.curve("train", "update_ratio"):
        if step > before:
            sizes.append(ratio / (step - before) ** 0.75)
        before = step
    return sizes


def _peak_rate(m: Measurements) -> Reasons:
    rate = max((value for _, value in m.curve("train", "lr")), default=0.0)
    return {"peak_rate": {"rate": rate}} if rate else {}


def _warmup_steps(run: RunRecord) -> int | None:
    """Return the warm-up of the resolved schedule; None if there is no configuration to read it from."""
    steps = run.schedule.get("warmup_num_steps", 0) if run.ds_config else None
    return steps if isinstance(steps, int) else None


def diverged(m: Measurements) -> Cause | None:
    """Find a loss or weights that are not finite, or a loss that jumped and has stayed up."""
    reasons: Reasons = {} if m.finite else {"not_finite": {}}
    if m.run is not None:
        lost = [row["step"] for row in (*m.run.train, *m.run.val) if "loss" in row and row["loss"] is None]
        if lost:
            reasons["loss_lost"] = {"step": min(lost)}
    train, curve = m.curve("train", "loss"), m.curve("val", "loss")
    if len(curve) > 3 and train:
        step, best = min(curve, key=lambda point: point[1])
        last = [value for _, value in curve[-max(2, len(curve) // 4) :]]
        if min(*last, train[-1][1]) > best + JUMPED:
            reasons["loss_stayed_up"] = {"best": best, "step": step, "last": last[-1]}
    return Cause("diverged", 0.8, reasons) if reasons else None


def router_collapsed(m: Measurements) -> Cause | None:
    """Find experts that almost no token reaches."""
    dead = m.dead_experts
    if m.expert_load is None or dead < COLLAPSED:
        return None
    total = sum(map(len, m.expert_load))
    values = {"dead": round(dead * total), "total": total, "busiest": max(map(max, m.expert_load))}
    return Cause("router_collapsed", min(0.95, 0.55 + 0.7 * dead), {"dead_experts": values})

"""The causes in their order, and whether the model parrots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from diagnosis.measurements import Measurements
from diagnosis.rules import Cause, Rule
from diagnosis.rules.data import duplicates, overfitted, repetitive_data, undertrained
from diagnosis.rules.optimization import (
    diverged,
    embedding_scale,
    gradients_kept,
    low_precision_weights,
    norms_decayed,
    rate_too_high,
    rate_too_low,
    router_collapsed,
    schedule_over,
)
from diagnosis.rules.targets import evaluation_differs, future_leak, other_text, padding_in_loss, targets_shifted
from evaluation.repetition import RepetitionMetrics

FAIR_STEPS = 50
LOOPS_FAR, REPETITION_FAR = 0.3, 0.3  # greedy text above the true text's rate
SAMPLED_FAR = 0.1  # sampled text above it: 32 continuations have these rates within a few hundredths

WRONG_LOSS = ("targets_shifted", "future_leak", "padding_in_loss")
# With these the routers collapse too, as a consequence.
BROKEN = (*WRONG_LOSS, "gradients_kept", "rate_too_high", "no_warmup", "embedding_scale", "low_precision_weights")
MEASURED_ON_TEXT = ("router_collapsed", "duplicates", "repetitive_data", "overfitted")


def find_causes(m: Measurements) -> list[Cause]:
    """Return the causes, the one with the highest confidence first; a healthy model has none.

    A cause that explains another one hides it. Too little training is looked for only where no fault was found, since
    it is the consequence of most of them, and a model that does not learn without any reason last.
    """
    found = _apply(FAULTS, m)
    ids = {cause.id for cause in found}
    hidden: set[str] = set()
    if ids & set(WRONG_LOSS):  # a loss on other targets differs from ours by itself
        hidden |= {"evaluation_differs", "overfitted", "other_text"}
    elif "other_text" in ids:  # what such a text shows of routers, copies and memory is about the text
        hidden |= set(MEASURED_ON_TEXT)
    if "low_precision_weights" in ids:  # weights whose updates are lost barely move at any learning rate
        hidden.add("rate_too_low")
    if "schedule_over" in ids:  # without a learning rate no weight changes
        hidden.add("low_precision_weights")
    found = [cause for cause in found if cause.id not in hidden]
    if ids & set(BROKEN):
        found = [
            replace(cause, confidence=cause.confidence * 0.7) if cause.id == "router_collapsed" else cause
            for cause in found
        ]
    for rule in (undertrained, not_learning, greedy_decoding):
        found = found or _apply([rule], m)
    return sorted(found, key=lambda cause: -cause.confidence)


def _apply(rules: Iterable[Rule], m: Measurements) -> list[Cause]:
    return [cause for rule in rules if (cause := rule(m)) is not None]


FAULTS: tuple[Rule, ...] = (
    targets_shifted,
    future_leak,
    padding_in_loss,
    embedding_scale,
    low_precision_weights,
    gradients_kept,
    rate_too_low,
    rate_too_high,
    norms_decayed,
    schedule_over,
    diverged,
    evaluation_differs,
    other_text,
    router_collapsed,
    duplicates,
    repetitive_data,
    overfitted,
)


def not_learning(m: Measurements) -> Cause | None:
    """Find a model that is worse than token frequencies after a fair number of steps."""
    if m.loss is None or m.baselines is None or m.loss < m.baselines.unigram:
        return None
    if m.run is not None and m.run.steps < FAIR_STEPS:
        return None
    return Cause("not_learning", 0.5, {"above_unigram": {"loss": m.loss, "unigram": m.baselines.unigram}})


def greedy_decoding(m: Measurements) -> Cause | None:
    """Find a healthy model whose folder asks for greedy decoding, which makes it loop."""
    if not m.greedy_by_default or not greedy_loops(m) or _sampled_parrots(m) or m.greedy is None or m.true is None:
        return None
    return Cause("decoding", 0.6, {"greedy_loops": {"greedy": m.greedy.loops or 0.0, "true": m.true.loops or 0.0}})


def parrots(m: Measurements) -> bool:
    """Return whether the model is a parrot.

    It is one if its sampled text repeats or copies far more than true text; also if its greedy text does and the model
    does not even use context, since no decoding setting can help it then.
    """
    return _sampled_parrots(m) or (greedy_loops(m) and not m.uses_context)


def greedy_loops(m: Measurements) -> bool:
    """Return whether greedy text repeats or loops far more than true text, as that of most small models does."""
    return _excess(m, m.greedy, "loops") > LOOPS_FAR or _excess(m, m.greedy, "repetition") > REPETITION_FAR


def _sampled_parrots(m: Measurements) -> bool:
    return any(_excess(m, m.sampled, name) > SAMPLED_FAR for name in ("repetition", "copying", "loops"))


def _excess(m: Measurements, generated: RepetitionMetrics | None, metric: str) -> float:
    """Return by how much a metric of generated text is above that of the true text; 0 where it is unknown."""
    value = getattr(generated, metric, None)
    return 0.0 if value is None or m.true is None else value - (getattr(m.true, metric) or 0.0)

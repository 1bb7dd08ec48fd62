"""Causes that lie in the training text and its amount: duplicates, repetition, overfitting, too few steps."""

from __future__ import annotations

from statistics import median

from diagnosis.measurements import Measurements
from diagnosis.rules import Cause, Reasons

# prepare.py drops exact copies; where a fifth is left in, they were asked for.
DUPLICATES, NEAR_DUPLICATES = 0.2, 0.3
# Of 128-token windows of Chinese technical documentation, code included, 0.7 % repeat half of their 4-grams; of poems,
# stories and question-answer text none do.
REPETITIVE_WINDOWS = 0.1
# Held-out above training loss: below this a model has learned more than it has memorised.
GAP_NATS, GAP_SHARE = 0.25, 0.1
# Without a curve in which the validation loss rises: a gap so large cannot be chance.
LARGE_GAP_NATS, LARGE_GAP_SHARE = 0.5, 0.25
RISEN = 0.05  # nats over the best validation loss
STEEP = 0.1  # nats won by the second half of the steps: a run that ends so would have gained by going on


def duplicates(m: Measurements) -> Cause | None:
    """Find copies in the training text: it is less text than it seems, and the model memorises it."""
    if m.training_text is None:
        return None
    found = m.training_text
    if found.duplicates >= DUPLICATES:
        reasons: Reasons = {"duplicates_found": {"share": found.duplicates, "copies": found.copies}}
        confidence = 0.6 + 0.2 * found.duplicates
    elif m.near_duplicates is not None and m.near_duplicates >= NEAR_DUPLICATES and m.gap > GAP_NATS:
        reasons, confidence = {"near_duplicates": {"share": m.near_duplicates}}, 0.5
    else:
        return None
    if m.gap > GAP_NATS / 2:
        reasons |= _gap_reason(m)
        confidence += 0.15
    return Cause("duplicates", min(0.95, confidence), reasons)


def repetitive_data(m: Measurements) -> Cause | None:
    """Find training text that repeats itself, so that a model of it must do so too."""
    if m.training_text is None or m.training_text.repetitive < REPETITIVE_WINDOWS:
        return None
    share = m.training_text.repetitive
    reasons: Reasons = {"repetitive": {"share": share}}
    if m.true is not None and m.true.repetition is not None:
        reasons["true_repeats"] = {"share": m.true.repetition}
    return Cause("repetitive_data", min(0.95, 0.7 + 0.4 * share), reasons)


def overfitted(m: Measurements) -> Cause | None:
    """Find a held-out loss that rose from its best while the training loss fell, or lies very far above it."""
    risen = _risen_validation_loss(m)
    reasons: Reasons = {}
    if m.held_out and m.gap > max(GAP_NATS, GAP_SHARE * m.held_out.loss):
        reasons |= _gap_reason(m)
    reasons |= risen
    large = m.held_out is not None and m.gap > max(LARGE_GAP_NATS, LARGE_GAP_SHARE * m.held_out.loss)
    if not risen and not large:
        return None
    return Cause("overfitted", 0.75 if len(reasons) == 2 else 0.6, reasons)


def _gap_reason(m: Measurements) -> Reasons:
    return {"gap": {"train": m.train.loss, "held_out": m.held_out.loss}} if m.train and m.held_out else {}


def _risen_validation_loss(m: Measurements) -> Reasons:
    """Return a reason if the validation loss rose from its best while the training loss went on falling."""
    val, train = m.curve("val", "loss"), m.curve("train", "loss")
    if len(val) < 3 or len(train) < 4:
        return {}
    step, best = min(val, key=lambda point: point[1])
    last = median(value for _, value in val[-2:])
    before = [value for at, value in train if at <= step][-3:]
    after = [value for _, value in train[-3:]]
    if last - best <= RISEN or not before or median(after) >= median(before):
        return {}
    return {"val_risen": {"best": best, "step": step, "last": last}}


def undertrained(m: Measurements) -> Cause | None:
    """Find a run that uses no context yet and whose loss was still falling at its end."""
    curve = m.curve("val", "loss") or m.curve("train", "loss")
    if m.run is None or m.baselines is None or m.uses_context or len(curve) < 2:
        return None
    end_step, end = curve[-1]
    half_step, half = min(curve[:-1], key=lambda point: abs(point[0] - end_step / 2))
    if half - end < STEEP:
        return None
    reasons: Reasons = {"still_falling": {"won": half - end, "half": half_step, "end": end_step}}
    if m.run.tokens and m.parameters:
        reasons["tokens_per_parameter"] = {"tokens": m.run.tokens, "ratio": m.run.tokens / m.parameters}
    return Cause("undertrained", 0.7, reasons)

"""Causes that lie in what the loss is computed on: shifted targets, leaked targets, padding, another text."""

from __future__ import annotations

from statistics import median

from diagnosis.measurements import Measurements
from diagnosis.rules import Cause, Reasons

# By how much the predictions must fit another token better than the next one. A model that has learned nothing fits all
# of them equally badly, as token frequencies do; one that has learned a wrong token fits it better by nats.
SHIFT_NATS, SHIFT_SHARE = 0.3, 0.04
# Copying the input is learned within tens of steps, so the loss on it is near 0.
COPY_SHARE = 0.6
COPIED = 0.5
# In packed text an EOS is followed by the next document's BOS; a model that expects padding was taught it.
PADDING_EXPECTED = 0.3
# Recorded against recomputed training loss: batches differ by a few hundredths.
LOSS_TOO_LOW, LOSS_TOO_LOW_SHARE = 0.5, 0.25
# Rounding in bf16 and fp16 stays below both together.
EVALUATION_NATS, EVALUATION_SHARE = 0.03, 0.005
# A loss that was computed twice on the same rows and targets differs by rounding alone.
SAME_NATS = 0.005
# Nats above the run's own validation text: other parts of one kind of text differ by tenths.
ANOTHER_KIND = 1.0


def targets_shifted(m: Measurements) -> Cause | None:
    """Find predictions that fit the token after the next one better than the next one.

    How well they fit the current token proves nothing: with tied embeddings that is easy until context is learned.
    """
    if m.held_out is None:
        return None
    offsets = m.held_out.offsets
    best = min((offset for offset in offsets if offset > 1), key=lambda offset: offsets[offset])
    recorded = _recorded_for(m, best)
    if not recorded and not _far_below(offsets[best], offsets[1], SHIFT_SHARE):
        return None
    reasons: Reasons = {"offsets": {"best": best, "nats": offsets[best], "next": offsets[1]}}
    return Cause("targets_shifted", 0.97, reasons | recorded)


def future_leak(m: Measurements) -> Cause | None:
    """Find predictions of the current token: in training the target was visible in the input.

    A network with tied embeddings favours its last token before it has learned anything, so the copying must be good,
    and the run must have recorded the low loss that it gives.
    """
    if m.held_out is None:
        return None
    offsets = m.held_out.offsets
    reasons: Reasons = {"offsets_present": {"nats": offsets[0], "next": offsets[1]}}
    if recorded_on := _recorded_for(m, 0):
        return Cause("future_leak", 0.97, reasons | recorded_on)
    if not _far_below(offsets[0], offsets[1], COPY_SHARE):
        return _leak_in_records(m)
    recorded = _recorded_train_loss(m)
    if recorded is not None:
        if abs(recorded - offsets[0]) > abs(recorded - offsets[1]):
            return None
        reasons["recorded_below"] = {"recorded": recorded, "measured": offsets[1]}
    return Cause("future_leak", 0.97, reasons)


def _leak_in_records(m: Measurements) -> Cause | None:
    """Find a leak whose copying was learned after the weights were saved.

    The records then show a training loss near 0 and a validation loss above token frequencies, which no overfitting on
    that text explains.
    """
    if m.baselines is None or m.held_out is None or m.held_out.offsets[0] > m.held_out.offsets[1]:
        return None
    train, val = m.curve("train", "loss"), m.curve("val", "loss")
    if not train or not val or train[-1][1] > COPIED or val[-1][1] < m.baselines.unigram:
        return None
    return Cause("future_leak", 0.85, {"train_low_val_high": {"train": train[-1][1], "val": val[-1][1]}})


def _recorded_for(m: Measurements, offset: int) -> Reasons:
    """Return a reason if the recorded validation loss is, on the same rows, that of the token at `offset`.

    Then it was computed on these targets, whatever the model has learned by then.
    """
    if m.held_out is None or m.recorded_val_loss is None:
        return {}
    fitting, right, recorded = m.held_out.offsets[offset], m.held_out.offsets[1], m.recorded_val_loss
    tolerance = EVALUATION_NATS + EVALUATION_SHARE * fitting + 3 * m.held_out.error
    same = abs(recorded - fitting) <= SAME_NATS and not m.held_out.error
    if abs(recorded - fitting) > tolerance or right - recorded <= tolerance + (0 if same else SHIFT_NATS):
        return {}
    return {"recorded_on": {"recorded": recorded, "nats": fitting, "offset": offset, "next": right}}


def _far_below(loss: float, other: float, share: float) -> bool:
    return other - loss > max(SHIFT_NATS, share * other)


def padding_in_loss(m: Measurements) -> Cause | None:
    """Find a model that expects padding after a document."""
    share = m.held_out.pad_after_eos if m.held_out else None
    if share is None or share <= PADDING_EXPECTED:
        return None
    reasons: Reasons = {"pad_after_end": {"share": share}}
    recorded = _recorded_train_loss(m)
    if recorded is not None and m.train is not None:
        measured = m.train.loss
        if measured - recorded > max(LOSS_TOO_LOW, LOSS_TOO_LOW_SHARE * measured):
            reasons["recorded_below"] = {"recorded": recorded, "measured": measured}
    return Cause("padding_in_loss", 0.95, reasons)


def _recorded_train_loss(m: Measurements) -> float | None:
    """Return the training loss recorded around the step of the saved weights: the median of the nearest three lines."""
    curve = m.curve("train", "loss")
    if m.run is None or not curve:
        return None
    step = m.run.best[0] if m.run.best else curve[-1][0]
    return median(loss for _, loss in sorted(curve, key=lambda point: abs(point[0] - step))[:3])


def evaluation_differs(m: Measurements) -> Cause | None:
    """Find saved weights whose validation loss differs from the recorded one, on the same rows."""
    if m.held_out is None or m.recorded_val_loss is None:
        return None
    recorded, measured = m.recorded_val_loss, m.held_out.loss
    difference = abs(recorded - measured)
    if difference <= EVALUATION_NATS + EVALUATION_SHARE * measured + 3 * m.held_out.error:
        return None
    reasons: Reasons = {"evaluation": {"recorded": recorded, "measured": measured}}
    return Cause("evaluation_differs", min(0.9, 0.7 + 0.5 * difference), reasons)


def other_text(m: Measurements) -> Cause | None:
    """Find a run that is diagnosed on a text of another kind than its own, which says nothing about the run."""
    if m.own_text or m.run is None or m.run.best is None or m.held_out is None:
        return None
    recorded, measured = m.run.best[1], m.held_out.loss
    if measured - recorded < ANOTHER_KIND:
        return None
    return Cause("other_text", 0.9, {"other_text_loss": {"recorded": recorded, "measured": measured}})

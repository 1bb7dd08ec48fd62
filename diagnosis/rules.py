"""Why a model is bad, as rules: each looks at the Evidence and answers with a Cause or None.

Thresholds stand at the head of the rule's section with their reason. Rules know nothing of how a run was made: they see
what it left behind. `judge` puts the causes in order; a healthy model has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from diagnosis.measurements import Evidence
from diagnosis.run_record import Curve, RunRecord

Note = tuple[str, dict[str, Any]]  # a sentence of diagnosis/report/messages.py with its values


@dataclass(frozen=True)
class Cause:
    """`confidence` from 0 to 1 also orders: of two causes the surer one is mended first."""

    id: str
    confidence: float
    evidence: list[Note]


Rule = Callable[[Evidence], Cause | None]


def judge(evidence: Evidence) -> list[Cause]:
    """The causes, surest first.

    First those that explain a loss by themselves; what a model then lacks in training is their consequence, so a lack
    of training is only looked for where they found nothing, and a failure without any explanation last.
    """
    found = _apply(FAULTS, evidence)
    if any(cause.id in WRONG_LOSS for cause in found):
        # a loss that measures something else than it says differs from ours by itself
        found = [cause for cause in found if cause.id not in ("evaluation_differs", "overfitted", "other_text")]
    elif any(cause.id == "other_text" for cause in found):
        # what such text shows of routers, copies and memory is about the text
        found = [cause for cause in found if cause.id not in SEEN_ON_TEXT]
    if any(cause.id == "low_precision_weights" for cause in found):
        # weights whose updates are lost barely move, whatever the rate
        found = [cause for cause in found if cause.id != "rate_too_low"]
    if any(cause.id in BROKEN for cause in found):
        found = [
            replace(cause, confidence=cause.confidence * 0.7) if cause.id == "router_collapsed" else cause
            for cause in found
        ]
    for group in ((undertrained,), (not_learning,), (decoding,)):
        if not found:
            found = _apply(group, evidence)
    return sorted(found, key=lambda cause: -cause.confidence)


def _apply(rules: Sequence[Rule], evidence: Evidence) -> list[Cause]:
    return [cause for rule in rules if (cause := rule(evidence)) is not None]


# --- what the loss is taken on ---

# By how much the prediction must fit another token better than the next one. A model that has learned nothing fits all
# of them alike, as badly as token frequencies do; one that has learned a wrong one fits it by nats.
SHIFT_NATS, SHIFT_SHARE = 0.3, 0.04
# Copying the input is learned within tens of steps, so the loss on it is near 0.
COPY_SHARE = 0.6
COPIED = 0.5
# A document's end is followed by the next one's begin in packed text; a model that expects padding was taught it.
PADDING_EXPECTED = 0.3
# Recorded against recomputed training loss: batches differ by a few hundredths.
LOSS_TOO_LOW, LOSS_TOO_LOW_SHARE = 0.5, 0.25


def targets_shifted(e: Evidence) -> Cause | None:
    """The predictions fit the token after the next better than the next one.

    How well they fit the present token says nothing: with tied embeddings it is easy until context has been learned.
    """
    if e.held_out is None:
        return None
    offsets = e.held_out.offsets
    best = min((offset for offset in offsets if offset > 1), key=lambda offset: offsets[offset])
    recorded = _recorded_for(e, best)
    if not _far_below(offsets[best], offsets[1], SHIFT_SHARE) and not recorded:
        return None
    return Cause("targets_shifted", 0.97, [("offsets", _offset_values(offsets, best)), *recorded])


def future_leak(e: Evidence) -> Cause | None:
    """The predictions are the present token: in training the answer stood in the input.

    A network with tied embeddings favours its last token before it has learned anything, so copying must be good, and
    the run have recorded the low loss that it gives.
    """
    if e.held_out is None:
        return None
    offsets = e.held_out.offsets
    if fits := _recorded_for(e, 0):
        return Cause("future_leak", 0.97, [("offsets_present", _offset_values(offsets, 0)), *fits])
    recorded = _recorded_train_loss(e.run)
    if not _far_below(offsets[0], offsets[1], COPY_SHARE):
        return _leak_in_records(e)
    if recorded is not None and abs(recorded - offsets[0]) > abs(recorded - offsets[1]):
        return None
    notes: list[Note] = [("offsets_present", _offset_values(offsets, 0))]
    if recorded is not None:
        notes.append(("recorded_below", {"recorded": recorded, "measured": offsets[1]}))
    return Cause("future_leak", 0.97, notes)


def _leak_in_records(e: Evidence) -> Cause | None:
    """The saved weights may be of a step before the copying was learned: then the records show that training ended near
    0 where validation knew less than token frequencies, which no overfitting on that text explains."""
    if e.run is None or e.ladder is None or e.held_out is None or e.held_out.offsets[0] > e.held_out.offsets[1]:
        return None
    train, val = e.run.curve("train", "loss"), e.run.curve("val", "loss")
    if not train or not val or train[-1][1] > COPIED or val[-1][1] < e.ladder.unigram:
        return None
    return Cause("future_leak", 0.85, [("train_low_val_high", {"train": train[-1][1], "val": val[-1][1]})])


def _recorded_for(e: Evidence, offset: int) -> list[Note]:
    """A note if the validation loss that the run recorded is, on the same rows, that of the token `offset` places on:
    it was measured on these targets, whatever the model has learned by then."""
    if e.held_out is None or e.recorded_val_loss is None:
        return []
    fitting, right, recorded = e.held_out.offsets[offset], e.held_out.offsets[1], e.recorded_val_loss
    near = EVALUATION_NATS + EVALUATION_SHARE * fitting + 3 * e.held_out.error
    if abs(recorded - fitting) > near or right - recorded <= SHIFT_NATS + near:
        return []
    return [("recorded_on", {"recorded": recorded, "nats": fitting, "offset": offset, "next": right})]


def _far_below(loss: float, other: float, share: float) -> bool:
    return other - loss > max(SHIFT_NATS, share * other)


def _offset_values(offsets: dict[int, float], best: int) -> dict[str, Any]:
    return {"best": best, "nats": offsets[best], "next": offsets[1]}


def padding_in_loss(e: Evidence) -> Cause | None:
    """The model expects padding behind a document, or its recorded loss is one that real text does not give."""
    share = e.held_out.pad_after_end if e.held_out else None
    recorded = _recorded_train_loss(e.run)
    measured = e.train.loss if e.train else None
    low = (
        recorded is not None
        and measured is not None
        and measured - recorded > max(LOSS_TOO_LOW, LOSS_TOO_LOW_SHARE * measured)
    )
    notes: list[Note] = []
    if share is not None and share > PADDING_EXPECTED:
        notes.append(("pad_after_end", {"share": share}))
    if low and notes:
        notes.append(("recorded_below", {"recorded": recorded, "measured": measured}))
    return Cause("padding_in_loss", 0.95, notes) if notes else None


def _recorded_train_loss(run: RunRecord | None) -> float | None:
    """Training loss recorded about the step of the saved weights: the median of the nearest lines."""
    if run is None or not (curve := run.curve("train", "loss")):
        return None
    step = run.best[0] if run.best else curve[-1][0]
    nearest = sorted(curve, key=lambda point: abs(point[0] - step))[:3]
    return median(loss for _, loss in nearest)


WRONG_LOSS = ("targets_shifted", "future_leak", "padding_in_loss")
# Under these the routers collapse too, as a consequence
BROKEN = (*WRONG_LOSS, "gradients_kept", "rate_too_high", "no_warmup", "embedding_scale", "low_precision_weights")


# --- the start ---

# Our start is ln V within 0.15 (model/init.py); above it by a nat, the network is sure of wrong tokens before it has
# seen any.
START_ABOVE = 1.0


def embedding_scale(e: Evidence) -> Cause | None:
    """The loss before the first step is far above that of pure chance."""
    if e.run is None:
        return None
    curve = e.run.curve("val", "loss")[:1] or e.run.curve("train", "loss")[:1]
    if not curve or curve[0][0] > 1:
        return None
    start, chance = curve[0][1], math.log(e.vocab_size)
    if start - chance <= START_ABOVE:
        return None
    confidence = min(0.95, 0.8 + 0.05 * (start - chance))
    return Cause("embedding_scale", confidence, [("start_loss", {"start": start, "chance": chance})])


# --- the optimizer ---

# Share of the optimizer's weights that come out of log intervals as they went in, late in the run when the rate is low.
# In fp32 even an update of a millionth of the weight is seen: 1e-5 measured, also at a hundredth of the rate, but for
# experts that no token reaches. All in bf16, it was 0.02 at the peak of a usual rate and 0.3 at its end.
UNCHANGED = 0.05
# Relative change a step (update_ratio over the steps of a log interval). AdamW moves a weight of rms 0.02 by about its
# rate: 2e-4 gives 1e-2, so that a hundredth of a usual rate stays below 3e-3 at its peak.
STEP_TOO_SMALL = 3e-3
# What is learned must replace what was drawn at random: matrices that have moved by less than a quarter of their start
# after so many steps have not been trained. At a usual rate 16 steps of a warm-up take them half of the way.
BARELY_MOVED, MOVED_STEPS = 0.25, 30
# Matrices that grew so far hold the optimizer's steps and nothing of their start; a healthy run of some hundred steps
# ends at 2 to 3, with Muon at 6, and goes on growing: no proof by itself.
OVERGROWN = 8.0
# A step of half the weights forgets the one before; healthy ones are a tenth at the most, and that in the warm-up.
STEP_TOO_LARGE = 0.5
SIGNS = 2
# A gradient that is added up over n steps grows like n; a gradient that is not stays within a factor of a few.
GRADIENT_GROWTH, GRADIENT_ORDER = 3.0, 0.85


def low_precision_weights(e: Evidence) -> Cause | None:
    """Updates round away: the optimizer's own weights do not change although it steps."""
    if e.run is None:
        return None
    curve = [value for step, value in e.run.curve("train", "unchanged") if step > 1]
    if not curve:
        return None
    idle = _dead_share(e)  # an expert that no token reaches does not change either
    late = median(curve[-max(1, len(curve) // 3) :])
    if late < UNCHANGED + idle:
        return None
    return Cause("low_precision_weights", min(0.95, 0.75 + 0.4 * (late - idle)), [("unchanged", {"share": late})])


def gradients_kept(e: Evidence) -> Cause | None:
    """The gradient norm climbs with the steps, as if every step's gradient were added to those before it."""
    if e.run is None:
        return None
    curve = e.run.curve("train", "grad_norm")
    if len(curve) < 6:
        return None
    quarter = max(1, len(curve) // 4)
    first, last = median(v for _, v in curve[:quarter]), median(v for _, v in curve[-quarter:])
    order = _rank_correlation(curve)
    if first <= 0 or last < GRADIENT_GROWTH * first or order < GRADIENT_ORDER:
        return None
    return Cause("gradients_kept", 0.9, [("grad_growth", {"first": first, "last": last, "times": last / first})])


def _rank_correlation(curve: Curve) -> float:
    """Spearman's, of a curve's values with its steps."""
    values = [value for _, value in curve]
    ranks = {place: rank for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i]))}
    n = len(values)
    return 1 - 6 * sum((place - ranks[place]) ** 2 for place in range(n)) / (n * (n * n - 1))


def rate_too_low(e: Evidence) -> Cause | None:
    """The weights barely move, step by step and over all, and the loss still falls. Not judged during the warm-up."""
    if e.run is None or _learned(e) or e.run.steps < max(MOVED_STEPS, 2 * (_warmup_steps(e.run) or 0)):
        return None
    notes: list[Note] = []
    step = _step_sizes(e.run)
    if step and max(step) < STEP_TOO_SMALL:
        notes.append(("small_steps", {"ratio": max(step)}))
    if e.weights is not None and e.weights.moved < BARELY_MOVED:
        notes.append(("barely_moved", {"share": e.weights.moved, "steps": e.run.steps}))
    if not notes:
        return None
    confidence = 0.6 + 0.15 * len(notes)
    if rate := _peak_rate(e.run):
        notes.append(("peak_rate", {"rate": rate}))
    return Cause("rate_too_low", confidence, notes)


def too_high(e: Evidence) -> Cause | None:
    """The steps destroy what is learned: no_warmup where they did so at the start of a schedule without warm-up,
    rate_too_high otherwise.

    It takes two signs of three. A falling schedule saves much of such a run, so what it learned in the end is none.
    """
    if e.run is None:
        return None
    notes = _damage(e)
    if len(notes) < SIGNS:
        return None
    if rate := _peak_rate(e.run):
        notes.append(("peak_rate", {"rate": rate}))
    warmup = _warmup_steps(e.run)
    if warmup is not None and warmup <= 2:
        return Cause("no_warmup", 0.9, [*notes, ("no_warmup_steps", {})])
    return Cause("rate_too_high", 0.85, notes)


def _damage(e: Evidence) -> list[Note]:
    notes: list[Note] = []
    if e.weights is not None and e.weights.grown > OVERGROWN:
        notes.append(("overgrown", {"times": e.weights.grown}))
    steps = _step_sizes(e.run) if e.run else []
    if steps and max(steps) > STEP_TOO_LARGE:
        notes.append(("large_steps", {"ratio": max(steps)}))
    losses = e.run.curve("train", "loss") if e.run else []
    chance = math.log(e.vocab_size)
    peak = max((value for _, value in losses), default=0.0)
    if peak > chance + 1 and losses and losses[0][1] < chance + 1:
        notes.append(("loss_jumped", {"peak": peak, "start": losses[0][1]}))
    return notes


def _step_sizes(run: RunRecord) -> list[float]:
    """Relative change a step, from that over each log interval: steps in one direction would add up like n, random ones
    like its root; they lie between."""
    sizes, before = [], 0
    for step, ratio in run.curve("train", "update_ratio"):
        if step > before:
            sizes.append(ratio / (step - before) ** 0.75)
        before = step
    return sizes


def _peak_rate(run: RunRecord) -> float | None:
    return max((value for _, value in run.curve("train", "lr")), default=None)


def _warmup_steps(run: RunRecord) -> int | None:
    """Of the resolved schedule; None if there is no configuration to read it from."""
    if not run.ds_config:
        return None
    steps = run.schedule.get("warmup_num_steps", 0)
    return steps if isinstance(steps, int) else None


# --- divergence, evaluation, experts ---

JUMPED = 0.5  # nats above the best: noise between evaluations is hundredths
EVALUATION_NATS, EVALUATION_SHARE = 0.03, 0.005  # rounding in bf16 and fp16 stays below both together
ANOTHER_KIND = 1.0  # nats above the run's own validation text: other pieces of one kind of text differ by tenths
DEAD = 0.1  # of its even share: an expert below that is not in use
COLLAPSED = 0.25  # share of all experts that are dead


def diverged(e: Evidence) -> Cause | None:
    """The loss or the weights are not finite, or the loss jumped up and stayed."""
    notes: list[Note] = []
    if not e.finite:
        notes.append(("not_finite", {}))
    if e.run is not None:
        lost = [row["step"] for row in (*e.run.train, *e.run.val) if "loss" in row and row["loss"] is None]
        if lost:
            notes.append(("loss_lost", {"step": min(lost)}))
        curve = e.run.curve("val", "loss")
        last = [value for _, value in curve[-max(2, len(curve) // 4) :]]
        best = min(curve, key=lambda point: point[1], default=None)
        train = e.run.curve("train", "loss")
        if best and len(curve) > 3 and min(last) > best[1] + JUMPED and train[-1:] and train[-1][1] > best[1] + JUMPED:
            notes.append(("loss_stayed_up", {"best": best[1], "step": best[0], "last": last[-1]}))
    return Cause("diverged", 0.8, notes) if notes else None


def evaluation_differs(e: Evidence) -> Cause | None:
    """The saved weights give another validation loss than the run recorded for them, on the same rows."""
    if e.run is None or e.held_out is None or e.recorded_val_loss is None:
        return None
    recorded, measured = e.recorded_val_loss, e.held_out.loss
    if abs(recorded - measured) <= EVALUATION_NATS + EVALUATION_SHARE * measured + 3 * e.held_out.error:
        return None
    confidence = min(0.9, 0.7 + 0.5 * abs(recorded - measured))
    return Cause("evaluation_differs", confidence, [("evaluation", {"recorded": recorded, "measured": measured})])


def other_text(e: Evidence) -> Cause | None:
    """A run that is judged on other text than its own, and of another kind: it shows nothing about the run."""
    if e.own_text or e.run is None or e.run.best is None or e.held_out is None:
        return None
    recorded, measured = e.run.best[1], e.held_out.loss
    if measured - recorded < ANOTHER_KIND:
        return None
    return Cause("other_text", 0.9, [("other_text_loss", {"recorded": recorded, "measured": measured})])


def router_collapsed(e: Evidence) -> Cause | None:
    """Experts that (almost) no token reaches."""
    dead = _dead_share(e)
    if e.router is None or dead < COLLAPSED:
        return None
    total = sum(map(len, e.router.load))
    busiest = max(max(layer) for layer in e.router.load)
    return Cause(
        "router_collapsed",
        min(0.95, 0.55 + 0.7 * dead),
        [("dead_experts", {"dead": round(dead * total), "total": total, "busiest": busiest})],
    )


def _dead_share(e: Evidence) -> float:
    if e.router is None:
        return 0.0
    shares = [share * len(layer) for layer in e.router.load for share in layer]
    return sum(share < DEAD for share in shares) / len(shares) if shares else 0.0


# --- the data ---

# prepare.py drops exact copies; where a fifth is left in, they were asked for.
DUPLICATES, NEAR_DUPLICATES = 0.2, 0.3
# Of 128-token windows of Chinese technical documentation, code included, 0.7 % repeat half of their 4-grams; of poems,
# stories and question-answer text none do.
REPETITIVE_WINDOWS = 0.1
GAP_NATS, GAP_SHARE = 0.25, 0.1  # held-out above training loss: below this a model has learned more than it memorised
RISEN = 0.05  # nats over the best validation loss


def duplicates(e: Evidence) -> Cause | None:
    """Copies in the training text, so that it is less text than it seems and is learned by heart."""
    if e.data is None:
        return None
    notes: list[Note] = []
    confidence = 0.0
    if e.data.duplicates >= DUPLICATES:
        notes.append(("duplicates_found", {"share": e.data.duplicates, "copies": e.data.copies}))
        confidence = 0.6 + 0.2 * e.data.duplicates
    elif e.near_duplicates is not None and e.near_duplicates >= NEAR_DUPLICATES and _gap(e) > GAP_NATS:
        notes.append(("near_duplicates", {"share": e.near_duplicates}))
        confidence = 0.5
    if notes and e.train and e.held_out and _gap(e) > GAP_NATS / 2:
        notes.append(("gap", {"train": e.train.loss, "held_out": e.held_out.loss}))
        confidence += 0.15
    return Cause("duplicates", min(0.95, confidence), notes) if notes else None


def repetitive_data(e: Evidence) -> Cause | None:
    """The training text repeats itself, and a model of it must."""
    if e.data is None or e.data.repetitive < REPETITIVE_WINDOWS:
        return None
    notes: list[Note] = [("repetitive", {"share": e.data.repetitive})]
    if e.true is not None and e.true.repetition is not None:
        notes.append(("true_repeats", {"share": e.true.repetition}))
    return Cause("repetitive_data", min(0.95, 0.7 + 0.4 * e.data.repetitive), notes)


def overfitted(e: Evidence) -> Cause | None:
    """Held-out loss far above training loss and risen from its best, or so far above that it cannot be chance."""
    gap = _gap(e)
    risen = _risen(e.run)
    notes: list[Note] = []
    if e.train and e.held_out and gap > max(GAP_NATS, GAP_SHARE * e.held_out.loss):
        notes.append(("gap", {"train": e.train.loss, "held_out": e.held_out.loss}))
    if risen is not None:
        notes.append(("val_risen", risen))
    sure = (e.run is None or risen is None) and e.held_out is not None and gap > max(0.5, 0.25 * e.held_out.loss)
    if not notes or (risen is None and not sure):
        return None
    return Cause("overfitted", 0.75 if len(notes) == 2 else 0.6, notes)


def _gap(e: Evidence) -> float:
    return e.held_out.loss - e.train.loss if e.held_out and e.train else 0.0


def _risen(run: RunRecord | None) -> dict[str, Any] | None:
    """Validation up from its best while training went on down."""
    if run is None:
        return None
    val, train = run.curve("val", "loss"), run.curve("train", "loss")
    if len(val) < 3 or len(train) < 4:
        return None
    step, best = min(val, key=lambda point: point[1])
    last = median(value for _, value in val[-2:])
    before = [value for at, value in train if at <= step][-3:]
    after = [value for _, value in train[-3:]]
    if last - best <= RISEN or not before or median(after) >= median(before):
        return None
    return {"best": best, "step": step, "last": last}


FAULTS: tuple[Rule, ...] = (
    targets_shifted,
    future_leak,
    padding_in_loss,
    embedding_scale,
    low_precision_weights,
    gradients_kept,
    rate_too_low,
    too_high,
    diverged,
    evaluation_differs,
    other_text,
    router_collapsed,
    duplicates,
    repetitive_data,
    overfitted,
)
SEEN_ON_TEXT = ("router_collapsed", "duplicates", "repetitive_data", "overfitted")


# --- what is left ---

STEEP = 0.1  # nats won by the second half of the steps: a run that ends so would have gained by going on
FAIR_STEPS = 50
LOOPS_FAR, REPETITION_FAR = 0.3, 0.3  # greedy text against the true text's figure
SAMPLED_FAR = 0.1  # sampled text against it: 32 continuations have them within a few hundredths


def undertrained(e: Evidence) -> Cause | None:
    """No context used yet, and the loss was still falling when the run ended."""
    if e.run is None or e.ladder is None or e.loss is None or _learned(e):
        return None
    curve = e.run.curve("val", "loss") or e.run.curve("train", "loss")
    if len(curve) < 2:
        return None
    end_step, end = curve[-1]
    half = min(curve[:-1], key=lambda point: abs(point[0] - end_step / 2))
    won = half[1] - end
    if won < STEEP:
        return None
    notes: list[Note] = [("still_falling", {"won": won, "half": half[0], "end": end_step})]
    if e.run.tokens and e.parameters:
        notes.append(("tokens_per_parameter", {"tokens": e.run.tokens, "ratio": e.run.tokens / e.parameters}))
    return Cause("undertrained", 0.7, notes)


def not_learning(e: Evidence) -> Cause | None:
    """Worse than token frequencies after a fair number of steps, and nothing found that would explain it."""
    if e.loss is None or e.ladder is None or e.loss < e.ladder.unigram:
        return None
    if e.run is not None and e.run.steps < FAIR_STEPS:
        return None
    return Cause("not_learning", 0.5, [("above_unigram", {"loss": e.loss, "unigram": e.ladder.unigram})])


def decoding(e: Evidence) -> Cause | None:
    """A model that is well, in a folder that asks for a decoding which makes it loop."""
    if not e.greedy_by_default or not greedy_loops(e) or sampled_parrots(e):
        return None
    assert e.greedy is not None and e.true is not None
    return Cause("decoding", 0.6, [("greedy_loops", {"greedy": e.greedy.loops or 0.0, "true": e.true.loops or 0.0})])


def sampled_parrots(e: Evidence) -> bool:
    """Whether the model itself believes in repetition: its unfiltered samples repeat or copy far more than truth."""
    return any(above > SAMPLED_FAR for above in _above(e, e.sampled))


def greedy_loops(e: Evidence) -> bool:
    """Whether the likeliest text repeats or loops far more than true text, as it does with most small models."""
    if e.greedy is None or e.true is None:
        return False
    repetition, _, loops = _above(e, e.greedy)
    return loops > LOOPS_FAR or repetition > REPETITION_FAR


def _above(e: Evidence, written: Any) -> tuple[float, float, float]:
    """(repetition, copying, loops) over those of the true text; 0 where unknown."""
    if written is None or e.true is None:
        return 0.0, 0.0, 0.0
    pairs = ((written.repetition, e.true.repetition), (written.copying, e.true.copying), (written.loops, e.true.loops))
    return tuple((a or 0.0) - (b or 0.0) if a is not None else 0.0 for a, b in pairs)  # type: ignore[return-value]


def parrots(e: Evidence) -> bool:
    """The verdict. Yes if samples repeat or copy far more than true text; yes too if greedy text does and the model
    does not even use context (its loss is above the bigram rung): then no setting can help it."""
    return sampled_parrots(e) or (greedy_loops(e) and not _learned(e))


def _learned(e: Evidence) -> bool:
    """Below the bigram rung: it uses more than the last token."""
    return e.loss is not None and e.ladder is not None and e.loss < e.ladder.bigram

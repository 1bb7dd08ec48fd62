"""Alarms: what goes wrong in a run and can be seen in its own figures, said once, while hours can still be saved.

Each takes the figures of metrics.jsonl and nothing else, so a run that continues has its history from there. The limits
are wide: a healthy run must never raise one, and a sick one is far beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean, median, variance
from typing import Any

from evaluation.run_record import finite

# A model that learns at all passes the token frequencies while it warms up or soon after: after 30 steps of 2,048
# tokens in the demo (Muon), after some hundred of AdamW at 3e-4. So many steps after the warm-up are a fair chance ...
FLAT_STEPS = 200
# ... for a loss that stands still, and so many for one that still falls but is not there yet, as at 1 % of the usual
# learning rate
SLOW_STEPS = 1000
FLAT_FALL = 0.03  # nats from one quarter of those steps to the next: with less than that (or less than noise) it stands
FLAT_LINES = 8  # lines of metrics that this takes: two a quarter
LINES = 3  # lines of metrics, or evaluations, in a row before a trend is one ...
# ... and steps, where there is a line for every step: after a short warm-up, healthy routers and losses swing for ten
TREND_STEPS = 20

# exp(entropy of the load) is the number of experts in use: between the K that must be (collapsed) and all E (balanced),
# a layer below a quarter of the way has lost most of what it could choose from
COLLAPSED = 0.25

# fp16 halves its scale at an overflow, so eight in a row mean a scale 256 times too large: never in the middle of a
# run. At the start they are the search for a scale, which is over well above this one.
SKIPPED_IN_A_ROW, SEARCH_ENDS = 8, 256.0

# Norms of healthy runs vary threefold from line to line and fall slowly; single spikes are what clipping is for
EXPLODED, NORM_LINES, NORM_HISTORY = 10.0, 5, 50
RISEN = 1.0  # nats above its lowest: no noise of batches is as large, over LINES lines

HISTORY = 500  # lines of training that are looked at: enough for any trend here, and cheap after every line

OVERFIT_SHARE = 0.01  # of the loss, by which validation must have risen and training fallen since the best evaluation


class Alarms:
    """Reads lines of metrics and raises alarms, each at most once in a run.

    `unigram` is the loss of a model that knows only how frequent each token is; `warmup` counts steps. `raised` names
    the alarms so far, and grows. `report` is called with an alarm's step, name and message: what was seen, what it
    likely means, what to do.
    """

    def __init__(
        self,
        *,
        unigram: float,
        warmup: int,
        experts_per_token: int,
        raised: list[str],
        report: Callable[[int, str, str], None],
    ) -> None:
        self.unigram, self.warmup, self.experts_per_token = unigram, warmup, experts_per_token
        self.raised, self.report = raised, report
        self.train: list[dict[str, Any]] = []
        self.val: list[dict[str, Any]] = []
        self.skipped, self.applied = 0, False  # steps in a row; whether one was ever taken

    def remember(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take the history of a run that continues, and raise nothing."""
        for row in rows:
            (self.train if row.get("split") == "train" else self.val).append(row)
        del self.train[:-HISTORY]
        if self.train:
            self.applied = self.train[-1]["step"] > (self.train[-1].get("skipped_steps") or 0)

    def stepped(self, step: int, *, skipped: bool, loss_scale: float | None) -> None:
        """Look at an optimizer step; fp16 skips some."""
        self.skipped = self.skipped + 1 if skipped else 0
        self.applied = self.applied or not skipped
        searching = not self.applied and loss_scale is not None and loss_scale > SEARCH_ENDS
        if self.skipped < SKIPPED_IN_A_ROW or searching:
            return
        scale = f", its loss scale is down to {loss_scale:g}" if loss_scale is not None else ""
        message = (
            f"fp16 has skipped {self.skipped} steps in a row{scale}: gradients overflow at any scale, so they are not "
            "finite or grow without bound, and the run will end at the lowest scale; stop, lower the learning rate or "
            "lengthen the warm-up, and continue from an earlier checkpoint"
        )
        self._raise(step, "skipped_steps", message)

    def observe(self, row: dict[str, Any]) -> None:
        """Look at a line of metrics, of either split."""
        self.remember([row])
        if row.get("split") == "train":
            found = {
                "flat_loss": flat_loss(self.train, self.unigram, self.warmup),
                "router_collapsed": router_collapsed(self.train, self.experts_per_token, self.warmup),
                "exploding_gradients": exploding_gradients(self.train),
            }
        else:
            found = {"overfitting": overfitting(self.val, self.train)}
        for name, message in found.items():
            self._raise(row["step"], name, message)

    def _raise(self, step: int, name: str, message: str | None) -> None:
        if message is not None and name not in self.raised:
            self.raised.append(name)
            self.report(step, name, message)


def flat_loss(train: list[dict[str, Any]], unigram: float, warmup: int) -> str | None:
    """Return a message if the training loss stays above that of token frequencies, and stands still or nearly so."""
    rows = [row for row in train if row["step"] > warmup and finite(row.get("loss"))]
    if len(rows) < FLAT_LINES:
        return None
    steps = rows[-1]["step"] - warmup
    losses = [row["loss"] for row in rows]
    earlier, recent = losses[len(losses) // 2 : -len(losses) // 4], losses[-len(losses) // 4 :]
    if steps < FLAT_STEPS or fmean(recent) < unigram:
        return None
    noise = 2 * math.sqrt(variance(earlier) / len(earlier) + variance(recent) / len(recent))
    fall = fmean(earlier) - fmean(recent)
    if fall > max(FLAT_FALL, noise) and steps < SLOW_STEPS:
        return None
    return (
        f"the loss does not move: {fmean(recent):.2f} nats a token {steps:,} steps after the warm-up, where the "
        f"token frequencies alone give {unigram:.2f}; nothing is being learned, which more steps will not change: "
        "look at update_ratio and unchanged in metrics.jsonl (near 0 and 1: the learning rate is too small or updates "
        "are rounded away), try a learning rate 10 times larger or smaller, and run train.py --preflight"
    )


def lines_of_a_trend(train: list[dict[str, Any]]) -> int:
    """Return how many of the last lines make a trend: LINES, or all of TREND_STEPS steps if those are more."""
    return max(LINES, sum(row["step"] >= train[-1]["step"] - TREND_STEPS for row in train))


def router_collapsed(train: list[dict[str, Any]], experts_per_token: int, warmup: int) -> str | None:
    """Return a message if a layer has sent nearly all tokens to the same few experts all along a trend's lines."""
    rows = [row for row in train if row["step"] > warmup and row.get("expert_load")]
    recent = rows[-lines_of_a_trend(train) :]
    if len(recent) < LINES or recent[-1]["step"] - recent[0]["step"] < TREND_STEPS:
        return None
    for layer, share in enumerate(recent[-1]["expert_load"]):
        limit = experts_per_token + COLLAPSED * (len(share) - experts_per_token)
        # a router that swings from expert to expert has not collapsed: all of them learn
        mean = [fmean(loads) for loads in zip(*(row["expert_load"][layer] for row in recent), strict=True)]
        if len(share) > experts_per_token and experts_in_use(mean) < limit:
            entropy = recent[-1].get("router_entropy")
            sure = f", and the router's entropy is {entropy[layer]:.2f} of its maximum" if entropy else ""
            used = experts_in_use(share)
            return (
                f"the router of layer {layer} has collapsed: {used:.1f} of {len(share)} experts do the work of all "
                f"(loads {', '.join(f'{x:.2f}' for x in share)}){sure}; the others learn nothing "
                "any more and their weights are wasted: start again with a larger --router_aux_loss_coef (0.01 is "
                "usual, the high learning rates of cpu_x2.json need 0.1) or a lower learning rate"
            )
    return None


def experts_in_use(share: list[float]) -> float:
    """Return exp of the load's entropy: E experts with the same load count E, one expert with all of it 1."""
    return math.exp(-sum(x * math.log(x) for x in share if x > 0))


def exploding_gradients(train: list[dict[str, Any]]) -> str | None:
    """Return a message if the gradient norm or the loss has left its range for good, or is not a finite number."""
    row = train[-1]
    fix = (
        "lower the learning rate, lengthen the warm-up or set gradient_clipping to 1 (with Muon 0), and continue "
        "from an earlier checkpoint"
    )
    # fp16 may overflow in one forward pass, and skips that step
    if not any(finite(r.get("loss")) for r in train[-1 if row.get("loss_scale") is None else -LINES :]):
        return f"the loss of step {row['step']:,} is not a number: the weights have diverged; stop, {fix}"
    norms = [r["grad_norm"] for r in train if finite(r.get("grad_norm"))]
    before, last = norms[-NORM_HISTORY:-2], norms[-2:]
    if len(before) >= NORM_LINES and min(last) > EXPLODED * median(before) > 0:
        usual = median(before)
        return (
            f"the gradients explode: their norm is {last[-1]:.3g}, {last[-1] / usual:,.0f} times its usual "
            f"{usual:.3g}; training is about to be lost: {fix}"
        )
    losses = [r["loss"] for r in train if finite(r.get("loss"))]
    lines = lines_of_a_trend(train)
    means = [fmean(losses[i : i + lines]) for i in range(len(losses) - lines + 1)]
    if len(means) > lines + LINES and means[-1] > min(means[:-lines]) + RISEN:
        return (
            f"the loss has risen to {means[-1]:.2f} nats a token from {min(means):.2f}: steps have become too long "
            f"and undo what was learned; {fix}"
        )
    return None


def overfitting(val: list[dict[str, Any]], train: list[dict[str, Any]]) -> str | None:
    """Return a message if validation loss is above its best for LINES evaluations while training loss has fallen."""
    losses = [(row["step"], row["loss"]) for row in val if finite(row.get("loss"))]
    if not losses:
        return None
    best_step, best = min(losses, key=lambda pair: pair[1])
    since = [loss for step, loss in losses if step > best_step]
    then = [row["loss"] for row in train if row["step"] <= best_step and finite(row.get("loss"))][-LINES:]
    now = [row["loss"] for row in train if row["step"] > best_step and finite(row.get("loss"))][-LINES:]
    if len(since) < LINES or len(then) < LINES or len(now) < LINES:
        return None
    risen = min(since[-LINES:]) > best * (1 + OVERFIT_SHARE)
    if not (risen and fmean(now) < fmean(then) * (1 - OVERFIT_SHARE)):
        return None
    return (
        f"validation loss rises while training loss falls: {since[-1]:.3f} after {best:.3f} at step {best_step:,}, "
        f"training {fmean(now):.3f} after {fmean(then):.3f}; the model memorizes its training text: stop "
        "here (model/ holds the best, --patience 3 would have stopped by itself), and give it more text, fewer "
        "--epochs or a smaller model"
    )

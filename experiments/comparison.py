"""Runs laid side by side, as one object that JSON can hold: what --json writes, and what table and page show."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from diagnosis.report.messages import Messages
from evaluation.run_settings import PLACE
from experiments.experiment import Experiment, compare_pairs, group
from experiments.run_figures import AXES, ComparedRun, Point, read_runs
from experiments.settings import differences, show_value
from experiments.statistics import ALPHA

VERSION = 1
LOCALES = Path(__file__).with_name("locales")
FAR = 0.25  # of the way to where the losses are taken
NATS, BITS = "nats_per_token", "bits_per_byte"


@dataclass(frozen=True)
class Yardstick:
    """What the runs are compared by."""

    unit: str
    by: str | None
    """The axis at whose largest common value the losses are taken; None: each run's best loss."""
    common: float | None
    """That value."""

    def curve(self, run: ComparedRun, axis: str) -> list[Point]:
        """Return the validation curve in this unit."""
        return run.curve(axis, as_bits=self.unit == BITS)

    def value(self, run: ComparedRun) -> float | None:
        """Return the loss that a run is judged by; None for one that is not judged."""
        if self.by is None:
            if run.state != "finished":
                return None
            return run.bits(run.best) if self.unit == BITS else run.best
        curve = self.curve(run, self.by)
        if run.state == "diverged" or not curve or self.common is None or curve[-1][0] < self.common:
            return None
        xs, losses = zip(*curve, strict=True)
        return float(np.interp(self.common, xs, losses))

    def is_rough(self, run: ComparedRun) -> bool:
        """Return whether `value` is read off a straight line between two evaluations that are far apart."""
        if self.by is None or self.value(run) is None or self.common is None:
            return False
        xs = [x for x, _ in self.curve(run, self.by)]
        after = bisect_left(xs, self.common)
        return after > 0 and xs[after] > self.common and xs[after] - xs[after - 1] > FAR * self.common


def compare(
    folders: Sequence[Path], *, by: str | None = None, loss: float | None = None, language: str = "en"
) -> dict[str, Any]:
    """Return the comparison of the runs in `folders`; UserError if they cannot be compared.

    `by` compares the losses at the same tokens, time, steps or bytes instead of the best of each run; `loss` is the one
    that the table says how soon each run reached.
    """
    runs = read_runs(list(folders))
    unit = _unit(runs)
    yardstick = Yardstick(unit, by, None if by is None else _furthest(runs, by, unit))
    experiments = group(runs)
    for experiment in experiments:
        experiment.take_values(yardstick.value)
    experiments.sort(key=lambda experiment: float("inf") if experiment.mean is None else experiment.mean)
    pairs = compare_pairs(experiments)
    differing = differences([experiment.settings for experiment in experiments])
    target = loss if loss is not None else _common_target(runs, yardstick)
    messages = Messages(language, LOCALES)
    return {
        "version": VERSION,
        "language": messages.language,
        "unit": yardstick.unit,
        "by": by,
        "at": yardstick.common,
        "loss": target,
        "experiments": [_experiment(experiment, yardstick, target) for experiment in experiments],
        "differences": {name: [show_value(value) for value in values] for name, values in differing.items()},
        "pairs": pairs,
        "verdict": _verdict(messages, experiments, pairs, yardstick),
        "baselines": _baselines(runs, yardstick),
        "samples": _samples(experiments),
        "notes": _notes(messages, experiments, yardstick),
    }


def _furthest(runs: Sequence[ComparedRun], by: str, unit: str) -> float | None:
    """Return the largest value of an axis that all runs have reached with a validation loss, but those just begun."""
    curves = [run.curve(by, as_bits=unit == BITS) for run in runs if run.state != "diverged"]
    return min((curve[-1][0] for curve in curves if curve and curve[-1][0] > 0), default=None)


def _unit(runs: Sequence[ComparedRun]) -> str:
    """Return what losses may be compared in; UserError if they were measured on different text."""
    first = runs[0]
    for run in runs[1:]:
        if not _same_text(first, run):
            raise UserError(
                f"{first.record.folder} and {run.record.folder} were evaluated on different held-out text "
                f"({_describe(first)}; {_describe(run)}): their losses cannot be compared; measure each on the same "
                "text with diagnose.py --data, or prepare both corpora with the same validation file"
            )
    return NATS if all(_same_tokens(first, run) for run in runs[1:]) else BITS


def _same_text(a: ComparedRun, b: ComparedRun) -> bool:
    """Return whether both were evaluated on the same held-out text, as far as they say."""
    if a.text.fingerprint and a.text.fingerprint == b.text.fingerprint:
        return True
    if a.text.held_out and b.text.held_out:
        return a.text.held_out == b.text.held_out
    # of at least one nothing but the name is known, and how many bytes its tokens have
    ratios = [run.bytes_per_token.get("val") for run in (a, b)]
    same_ratio = ratios[0] is not None and ratios[1] is not None and abs(ratios[0] - ratios[1]) < 1e-6 * ratios[0]
    known = a.text.fingerprint and b.text.fingerprint
    return not known and a.record.corpus == b.record.corpus and (same_ratio or None in ratios)


def _same_tokens(a: ComparedRun, b: ComparedRun) -> bool:
    if a.text.tokenizer and b.text.tokenizer:
        return a.text.tokenizer == b.text.tokenizer
    return a.record.model.get("vocab_size") == b.record.model.get("vocab_size")


def _describe(run: ComparedRun) -> str:
    held_out = run.text.held_out
    size = f"{held_out[0]:,} documents, {held_out[1]:,} bytes" if held_out else "of unknown size"
    return f"{run.record.corpus or 'a corpus without a name'}, {size}"


def _common_target(runs: Sequence[ComparedRun], yardstick: Yardstick) -> float | None:
    """Return the loss that every finished run has reached, rounded up: the speeds to it can be compared."""
    curves = [yardstick.curve(run, "step") for run in runs if run.state == "finished"]
    bests = [min(loss for _, loss in curve) for curve in curves if curve]
    return float(np.ceil(100 * max(bests)) / 100) if bests else None


def reached(curve: Sequence[Point], loss: float) -> float | None:
    """Return the first x at which the line through the points is at most `loss`, None if it never is."""
    for (x0, before), (x, value) in zip([*curve[:1], *curve], curve, strict=False):
        if value <= loss:
            return x if before <= loss else x0 + (x - x0) * (before - loss) / (before - value)
    return None


def _experiment(experiment: Experiment, yardstick: Yardstick, target: float | None) -> dict[str, Any]:
    return {
        "label": experiment.label,
        "seeds": list(experiment.values),
        "values": list(experiment.values.values()),
        "mean": experiment.mean,
        "spread": experiment.spread,
        "runs": [_run(run, yardstick, target) for run in experiment.runs],
    }


def _run(run: ComparedRun, yardstick: Yardstick, target: float | None) -> dict[str, Any]:
    curves = {axis: yardstick.curve(run, axis) for axis in AXES}
    repetition, true = run.repetition()
    return {
        "name": run.name,
        "path": str(run.record.folder),
        "seed": run.seed,
        "state": run.state,
        "reason": run.reason,
        "step": run.record.steps,
        "total_steps": run.record.total_steps,
        "tokens": run.record.tokens,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "value": yardstick.value(run),
        "best_loss": run.best,
        "final_loss": run.final,
        "best_bits_per_byte": run.bits(run.best),
        "final_bits_per_byte": run.bits(run.final),
        "position": run.position(),
        "repetition": repetition,
        "true_repetition": true,
        "to_loss": {axis: None if target is None else reached(curve, target) for axis, curve in curves.items()},
        "curves": curves,
    }


def _verdict(
    messages: Messages, experiments: Sequence[Experiment], pairs: Sequence[dict[str, Any]], yardstick: Yardstick
) -> list[str]:
    """Return in sentences which experiment is best, and whether that is more than the noise of seeds."""
    judged = [experiment for experiment in experiments if experiment.values]
    if not judged:
        return [messages("verdict.nothing" if yardstick.by is None else "verdict.nothing_common")]
    best = judged[0]
    figures = {"best": best.label, "mean": best.mean, "seeds": len(best.values), "unit": messages(yardstick.unit)}
    if len(judged) == 1:
        if best.spread is None:
            return [messages("verdict.one_run", **figures)]
        return [messages("verdict.one_experiment", spread=best.spread, **figures)]
    sentences = [messages("verdict.best", second=judged[1].label, second_mean=judged[1].mean, **figures)]
    for key, differs, weakest in (("unknown", None, max), ("noise", False, min), ("better", True, max)):
        found = [pair for pair in pairs if pair["better"] == best.label and pair["differs"] is differs]
        if found:
            others = _listed([pair["worse"] for pair in found], messages)
            p = weakest(pair["p"] or 0.0 for pair in found)
            sentences.append(messages(f"verdict.{key}", others=others, p=p, alpha=ALPHA))
    return sentences


def _listed(names: Sequence[str], messages: Messages, most: int = 4) -> str:
    """Return the names with commas, the first few if they are many."""
    shown = [*names[:most], f"... ({len(names) - most})"] if len(names) > most + 1 else names
    return messages("comma").join(shown)


def _baselines(runs: Sequence[ComparedRun], yardstick: Yardstick) -> dict[str, float] | None:
    """Return the n-gram baselines in the unit; None where no run knows them, or tokenizers have different ones."""
    known = [run.text.ngram_baselines for run in runs if run.text.ngram_baselines]
    if not known or any(found != known[0] for found in known):
        return None
    to_unit = known[0].bits_per_byte if yardstick.unit == BITS else float
    return {name: to_unit(nats) for name, nats in known[0].losses().items()}


def _samples(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Return for each prompt the latest continuation of each experiment.

    Prompts are the first tokens of the first held-out documents; another tokenizer's are as long or a little shorter.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for experiment in experiments:
        run = experiment.representative
        for row in run.record.samples:
            if row["step"] == run.record.samples[-1]["step"] and isinstance(prompt := row.get("prompt"), str):
                shared = next((old for old in found if old.startswith(prompt) or prompt.startswith(old)), prompt)
                found.setdefault(shared, []).append({"label": experiment.label, "run": run.name, **row})
    return [{"prompt": min((t["prompt"] for t in texts), key=len), "texts": texts} for texts in found.values()]


def _notes(messages: Messages, experiments: Sequence[Experiment], yardstick: Yardstick) -> list[str]:
    """Return what a reader has to know to take the figures for what they are."""
    by_state: dict[str, list[str]] = {"training": [], "interrupted": [], "diverged": [], "finished": []}
    for experiment in experiments:
        for run in experiment.runs:
            by_state[run.state].append(run.name)
    notes = [messages("notes.bits")] if yardstick.unit == BITS else []
    notes += [
        messages(f"notes.{state}", runs=_listed(names, messages))
        for state, names in by_state.items()
        if names and state != "finished"
    ]
    if yardstick.by is None and by_state["training"] + by_state["interrupted"]:
        notes.append(messages("notes.by"))
    runs = [run for experiment in experiments for run in experiment.runs if run.state != "diverged"]
    if yardstick.common and (early := [run.name for run in runs if yardstick.value(run) is None]):
        notes.append(messages("notes.early", runs=_listed(early, messages)))
    if rough := [run.name for run in runs if yardstick.is_rough(run)]:
        notes.append(messages("notes.rough", runs=_listed(rough, messages)))
    varied = differences([experiment.settings for experiment in experiments]).keys() & {
        "--eval_tokens",
        "--max_seq_len",
    }
    if varied:
        notes.append(messages("notes.rows", names=_listed(sorted(varied), messages)))
    if any(differences([run.settings for run in experiment.runs]).keys() & {*PLACE} for experiment in experiments):
        notes.append(messages("notes.places"))
    return notes

"""Runs laid side by side, as one object that JSON can hold: what --json writes, and what table and page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from diagnosis.report.messages import Messages
from experiments.experiment import Experiment, Pair, compare_pairs, group
from experiments.run_figures import AXES, ComparedRun, Point, TextFacts, read_runs
from experiments.settings import PLACE, differences, settings_of, show_value
from experiments.statistics import ALPHA

VERSION = 1
LOCALES = Path(__file__).with_name("locales")
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


def compare(
    folders: Sequence[Path], *, by: str | None = None, loss: float | None = None, language: str = "en"
) -> dict[str, Any]:
    """Return the comparison of the runs in `folders`; UserError if they cannot be compared.

    `by` compares the losses at the same tokens, time, steps or bytes instead of the best of each run; `loss` is the one
    that the table says how soon each run reached.
    """
    runs = read_runs(list(folders))
    yardstick = _yardstick(runs, by)
    experiments = group(runs)
    for experiment in experiments:
        experiment.take_values(yardstick.value)
    experiments.sort(key=lambda experiment: float("inf") if experiment.mean is None else experiment.mean)
    pairs = compare_pairs(experiments)
    target = loss if loss is not None else _common_target(experiments, yardstick)
    messages = Messages(language, LOCALES)
    return {
        "version": VERSION,
        "language": messages.language,
        "unit": yardstick.unit,
        "by": by,
        "at": yardstick.common,
        "loss": target,
        "experiments": [_experiment(experiment, yardstick, target) for experiment in experiments],
        "differences": _differences(experiments),
        "pairs": [_pair(pair, experiments) for pair in pairs],
        "verdict": _verdict(messages, experiments, pairs, yardstick),
        "baselines": _baselines(runs, yardstick),
        "samples": _samples(experiments),
        "notes": _notes(messages, experiments, yardstick),
    }


def _yardstick(runs: Sequence[ComparedRun], by: str | None) -> Yardstick:
    unit = _unit(runs)
    if by is None:
        return Yardstick(unit, None, None)
    ends = [curve[-1][0] for run in runs if run.state != "diverged" and (curve := run.curve(by, as_bits=unit == BITS))]
    return Yardstick(unit, by, min(ends, default=None))


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
    facts: TextFacts = run.text
    size = f"{facts.held_out[0]:,} documents, {facts.held_out[1]:,} bytes" if facts.held_out else "of unknown size"
    return f"{run.record.corpus or 'a corpus without a name'}, {size}"


def _common_target(experiments: Sequence[Experiment], yardstick: Yardstick) -> float | None:
    """Return the loss that every finished run has reached, rounded up: the speeds to it can be compared."""
    bests = [
        min(loss for _, loss in curve)
        for experiment in experiments
        for run in experiment.runs
        if run.state == "finished" and (curve := yardstick.curve(run, "step"))
    ]
    return float(np.ceil(100 * max(bests)) / 100) if bests else None


def reached(curve: Sequence[Point], loss: float) -> float | None:
    """Return the first x at which the line through the points is at most `loss`, None if it never is."""
    before: Point | None = None
    for x, value in curve:
        if value <= loss:
            if before is None:
                return x
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (x - before[0])
        before = x, value
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


def _differences(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Return what differs, with the value of each experiment as it would be written."""
    found = differences([experiment.settings for experiment in experiments])
    return {name: [show_value(value) for value in values] for name, values in found.items()}


def _pair(pair: Pair, experiments: Sequence[Experiment]) -> dict[str, Any]:
    return {
        "better": experiments[pair.first].label,
        "worse": experiments[pair.second].label,
        "difference": (experiments[pair.second].mean or 0) - (experiments[pair.first].mean or 0),
        "margin": pair.test.margin if pair.test else None,
        "p": pair.p,
        "differs": pair.differs,
    }


def _verdict(
    messages: Messages, experiments: Sequence[Experiment], pairs: Sequence[Pair], yardstick: Yardstick
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
    with_best = [pair for pair in pairs if experiments[pair.first] is best]
    same = [experiments[pair.second].label for pair in with_best if pair.differs is False]
    unknown = [experiments[pair.second].label for pair in with_best if pair.differs is None]
    sentences = [messages("verdict.best", second=judged[1].label, second_mean=judged[1].mean, **figures)]
    comma = messages("comma")
    if unknown:
        sentences.append(messages("verdict.unknown", others=comma.join(_few(unknown))))
    if same:
        p = min(pair.p or 0 for pair in with_best if pair.differs is False)
        sentences.append(messages("verdict.noise", others=comma.join(_few(same)), p=p, alpha=ALPHA))
    if len(same) + len(unknown) < len(with_best):
        p = max(pair.p or 0 for pair in with_best if pair.differs)
        better = [experiments[pair.second].label for pair in with_best if pair.differs]
        sentences.append(messages("verdict.better", others=comma.join(_few(better)), p=p, alpha=ALPHA))
    return sentences


def _few(labels: Sequence[str], most: int = 4) -> list[str]:
    return [*labels[:most], f"... ({len(labels) - most})"] if len(labels) > most + 1 else list(labels)


def _baselines(runs: Sequence[ComparedRun], yardstick: Yardstick) -> dict[str, float] | None:
    """Return the n-gram baselines in the unit; None where no run knows them, or tokenizers have different ones."""
    known = [run.text.baselines for run in runs if run.text.baselines]
    if not known or any(found != known[0] for found in known):
        return None
    to_unit = known[0].bits_per_byte if yardstick.unit == BITS else float
    return {name: to_unit(nats) for name, nats in known[0].losses().items()}


def _samples(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Return for each prompt the latest continuation of each experiment.

    Prompts are the first tokens of the first held-out documents; another tokenizer's are as long or a little shorter.
    """
    latest: list[list[dict[str, Any]]] = []
    for experiment in experiments:
        rows = experiment.representative.record.samples
        last = max((row["step"] for row in rows), default=None)
        latest.append([row for row in rows if row["step"] == last and isinstance(row.get("prompt"), str)])
    found: dict[str, list[dict[str, Any]]] = {}
    for experiment, rows in zip(experiments, latest, strict=True):
        for row in rows:
            prompt = row["prompt"]
            shared = next((old for old in found if old.startswith(prompt) or prompt.startswith(old)), prompt)
            text = {"label": experiment.label, "run": experiment.representative.name, **row}
            found.setdefault(shared, []).append(text)
    return [{"prompt": min((t["prompt"] for t in texts), key=len), "texts": texts} for texts in found.values()]


def _notes(messages: Messages, experiments: Sequence[Experiment], yardstick: Yardstick) -> list[str]:
    """Return what a reader has to know to take the figures for what they are."""
    runs = [run for experiment in experiments for run in experiment.runs]
    notes = [messages("notes.bits")] if yardstick.unit == BITS else []
    for state in ("training", "interrupted", "diverged"):
        names = [run.name for run in runs if run.state == state]
        if names:
            notes.append(messages(f"notes.{state}", runs=messages("comma").join(_few(names))))
    if yardstick.by is None and any(run.state in ("training", "interrupted") for run in runs):
        notes.append(messages("notes.by"))
    varied = [name for name in ("--eval_tokens", "--max_seq_len") if _varies(experiments, name)]
    if varied:
        notes.append(messages("notes.rows", names=messages("comma").join(varied)))
    if any(len({repr(place) for place in _places(experiment)}) > 1 for experiment in experiments):
        notes.append(messages("notes.places"))
    return notes


def _varies(experiments: Sequence[Experiment], name: str) -> bool:
    return len({repr(experiment.settings.get(name)) for experiment in experiments}) > 1


def _places(experiment: Experiment) -> list[dict[str, Any]]:
    return [{key: value for key, value in settings_of(run).items() if key in PLACE} for run in experiment.runs]

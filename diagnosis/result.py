"""The diagnosis as an object that JSON can hold: what --json writes, and what terminal and page show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from diagnosis.decoding import DecodingComparison
from diagnosis.inputs import Inputs
from diagnosis.measurements import Measurements
from diagnosis.models import ModelUnderTest
from diagnosis.report.messages import Messages
from diagnosis.rules import Cause
from diagnosis.rules.verdict import greedy_loops, parrots
from evaluation.held_out_prompts import DecodingSettings
from evaluation.repetition import METRICS, RepetitionMetrics
from evaluation.run_record import Row

CURVES = {
    "train_loss": ("train", "loss"),
    "val_loss": ("val", "loss"),
    "lr": ("train", "lr"),
    "grad_norm": ("train", "grad_norm"),
    "loss_scale": ("train", "loss_scale"),
    "repetition": ("val", "repetition"),
    "true_repetition": ("val", "true_repetition"),
    "loops": ("val", "loops"),
    "update_ratio": ("train", "update_ratio"),
    "unchanged": ("train", "unchanged"),
}
USUAL_SETTINGS = DecodingSettings(0.7, 0.9, 1.1)  # recommended where none were compared


def about_inputs(inputs: Inputs) -> dict[str, Any]:
    """Return what was diagnosed, and how far it was trained."""
    run, model, text = inputs.run, inputs.model, inputs.text
    return {
        "path": str(inputs.path),
        "kind": "run" if run else "huggingface",
        "parameters": model.parameters if model else None,
        "vocab_size": inputs.vocab_size,
        "step": run.steps if run else None,
        "total_steps": run.total_steps if run else None,
        "tokens": run.tokens if run else None,
        "data": text.name if text else None,
    }


def as_object(
    messages: Messages, inputs: Inputs, m: Measurements, causes: list[Cause], comparison: DecodingComparison | None
) -> dict[str, Any]:
    """Return what was found, with all its texts in the language of `messages`."""
    run = inputs.run
    best = comparison.grid[comparison.best].settings if comparison and comparison.grid else USUAL_SETTINGS
    found = [_cause(messages, cause, run is None, best) for cause in causes]
    return {
        # null: without generated text a model is neither called a parrot nor cleared of it
        "verdict": {
            "parrots": parrots(m) if m.sampled else None,
            "healthy": False if causes else True if m.sampled else None,
            "headline": _headline(messages, m, found[0]["title"] if found else None, inputs.model is not None),
        },
        "ladder": _baselines(messages, m),
        "repetition": [
            {"who": kind, "label": messages(f"text_kinds.{kind}"), **_metrics(metrics)}
            for kind, metrics in (("true", m.true), ("sampled", m.sampled), ("greedy", m.greedy))
            if metrics is not None
        ],
        "causes": found,
        "offsets": [
            {"offset": offset, "nats": nats} for offset, nats in (m.held_out.offsets if m.held_out else {}).items()
        ],
        "curves": {name: m.curve(*source) for name, source in CURVES.items()},
        "expert_load": _expert_load(run.train if run else []),
        "samples": [{key: row[key] for key in ("step", "prompt", "text")} for row in (run.samples if run else [])],
        "decoding": _decoding(messages, comparison, inputs.model) if comparison and inputs.model else None,
        "corpus": inputs.text.report if inputs.text else None,
        "alarms": run.alarms if run else [],
        "preflight": run.preflight if run else None,
    }


def _headline(messages: Messages, m: Measurements, cause: str | None, has_model: bool) -> str:
    """Return the verdict in one sentence."""
    if not has_model:
        state = "no_model"
    elif m.sampled is None:
        state = "no_text"
    elif parrots(m):
        state = "parrots"
    elif cause:
        return messages("headline.cause", cause=cause)
    else:
        return messages("headline.healthy_loops" if greedy_loops(m) else "headline.healthy")
    return messages(f"headline.{state}_cause", cause=cause) if cause else messages(f"headline.{state}")


def _baselines(messages: Messages, m: Measurements) -> dict[str, Any]:
    """Return the n-gram baselines with the model's held-out and training loss."""
    baselines = m.baselines

    def place(nats: float | None) -> dict[str, Any] | None:
        bits = baselines.bits_per_byte(nats) if baselines and nats is not None else None
        return None if nats is None else {"nats": nats, "bits_per_byte": bits}

    stands = baselines.compare(m.loss) if baselines and m.loss is not None else None
    return {
        "rungs": [
            {"name": name, "label": messages(f"baselines.{name}"), **(place(nats) or {})}
            for name, nats in (baselines.losses().items() if baselines else ())
        ],
        "model": place(m.loss),
        "train": place(m.train.loss if m.train else None),
        "stands": stands,
        "sentence": messages(f"baselines.{stands or ('no_loss' if baselines else 'no_text')}"),
    }


def _metrics(metrics: RepetitionMetrics) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in METRICS}


def _cause(messages: Messages, cause: Cause, foreign: bool, settings: DecodingSettings) -> dict[str, Any]:
    """Return a cause in words; some are worded differently for a model that is `foreign`, not a run of this project."""

    def text(name: str) -> str:
        key = f"causes.{cause.id}.{name}"
        key = f"{key}_foreign" if foreign and f"{key}_foreign" in messages.texts else key
        return messages(key, settings=_settings(messages, settings))

    return {
        "id": cause.id,
        "title": text("title"),
        "confidence": cause.confidence,
        "evidence": [messages(f"reasons.{key}", **values) for key, values in cause.reasons.items()],
        "next": text("next"),
    }


def _settings(messages: Messages, settings: DecodingSettings) -> str:
    return messages("decoding.greedy" if settings.greedy else "decoding.sampled", **asdict(settings))


def _decoding(messages: Messages, comparison: DecodingComparison, model: ModelUnderTest) -> dict[str, Any] | None:
    """Return each setting with its metrics and one text, and which setting is closest to true text."""
    if not comparison.grid:
        return None
    best = comparison.best
    return {
        "grid": [
            {**asdict(row.settings), **_metrics(row.metrics), "sample": model.decode(row.outputs[0])}
            for row in comparison.grid
        ],
        "true": _metrics(comparison.true),
        "best": best,
        "prompt": model.decode(comparison.prompts.prompts[0]),
        "sentence": messages("decoding.best", settings=_settings(messages, comparison.grid[best].settings)),
    }


def _expert_load(rows: list[Row]) -> dict[str, Any] | None:
    """Return the experts' shares by layer over the steps; None for a dense model.

    A row whose shares are not one number for each expert that the first row has, such as a damaged one, is left out.
    """
    steps, loads = [], []
    for row in rows:
        try:
            load = np.array(row.get("expert_load"), dtype=float)
        except (TypeError, ValueError):
            continue
        if load.ndim == 2 and np.isfinite(load).all() and (not loads or load.shape == loads[0].shape):
            steps.append(row["step"])
            loads.append(load)
    return {"steps": steps, "layers": np.stack(loads, axis=1).tolist()} if loads else None

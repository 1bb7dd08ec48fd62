"""The diagnosis as one object that JSON can hold: what --json writes, and what terminal and page show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diagnosis.decoding import DecodingComparison
from diagnosis.measured_text import Text
from diagnosis.measurements import Measurements
from diagnosis.models import ModelUnderTest
from diagnosis.report.messages import Messages
from diagnosis.rules.cause import Cause
from diagnosis.rules.verdict import greedy_loops, parrots
from evaluation.held_out_prompts import DecodingSettings
from evaluation.repetition import METRICS, RepetitionMetrics
from evaluation.run_record import Row

VERSION = 1
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


def as_object(
    messages: Messages,
    *,
    checkpoint: Path,
    m: Measurements,
    causes: list[Cause],
    comparison: DecodingComparison | None,
    figures: dict[str, Any] | None,
    model: ModelUnderTest | None,
    text: Text | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return the diagnosis with all its texts in the language of `messages`."""
    run = m.run
    best = comparison.grid[comparison.best].settings if comparison and comparison.grid else USUAL_SETTINGS
    found = [_cause(messages, cause, run is None, best) for cause in causes]
    return _finite(
        {
            "version": VERSION,
            "language": messages.language,
            "subject": {
                "path": str(checkpoint),
                "kind": "run" if run else "huggingface",
                "parameters": m.parameters,
                "vocab_size": m.vocab_size,
                "step": run.steps if run else None,
                "total_steps": run.total_steps if run else None,
                "tokens": run.tokens if run else None,
                "data": text.name if text else None,
            },
            # null: without generated text a model is neither called a parrot nor cleared of it
            "verdict": {
                "parrots": parrots(m) if m.sampled else None,
                "healthy": False if causes else True if m.sampled else None,
                "headline": _headline(messages, m, found[0]["title"] if found else None, has_model=model is not None),
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
            "samples": [
                {"step": row["step"], "prompt": str(row.get("prompt", "")), "text": row["text"]}
                for row in (run.samples if run else [])
            ],
            "decoding": _decoding(messages, comparison, model) if comparison and model else None,
            "figures": figures,
            "corpus": text.report if text else None,
            "alarms": run.alarms if run else [],
            "preflight": run.preflight if run else None,
            "notes": notes,
        }
    )


def _headline(messages: Messages, m: Measurements, cause: str | None, *, has_model: bool) -> str:
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
    baselines, train = m.baselines, m.train.loss if m.train else None

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
        "train": place(train),
        "stands": stands,
        "sentence": messages(f"baselines.{stands or ('no_loss' if baselines else 'no_text')}"),
    }


def _metrics(metrics: RepetitionMetrics) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in METRICS}


def _cause(messages: Messages, cause: Cause, foreign: bool, settings: DecodingSettings) -> dict[str, Any]:
    """Return a cause in words; some are worded differently for a model that is `foreign`, not a run of this project."""

    def text(name: str) -> str:
        key = f"causes.{cause.id}.{name}"
        return messages(
            f"{key}_foreign" if foreign and f"{key}_foreign" in messages.texts else key,
            settings=_settings(messages, settings),
        )

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
    """Return the experts' shares by layer over the steps; None for a dense model."""
    rows = [row for row in rows if _is_load(row.get("expert_load"))]
    if not rows:
        return None
    layers = len(rows[0]["expert_load"])
    rows = [row for row in rows if len(row["expert_load"]) == layers]
    return {
        "steps": [row["step"] for row in rows],
        "layers": [[row["expert_load"][layer] for row in rows] for layer in range(layers)],
    }


def _is_load(value: Any) -> bool:
    """Return whether a value from metrics.jsonl is a list of shares for each layer."""
    return isinstance(value, list) and all(
        isinstance(layer, list) and all(isinstance(share, (int, float)) for share in layer) for layer in value
    )


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold: infinities and NaN become null, tuples lists."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

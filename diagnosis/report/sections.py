"""What the page's sections show that is more than a figure of the diagnosis (or of a corpus report) as it stands.

`t` holds the page's texts in its language (section "page" of report/locales/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diagnosis.report.charts import Bands, Chart, Curve, histogram, line_chart, stacked_bands
from diagnosis.report.format import amount, excerpt, finite, number, percent, plain, repeated_pieces, short
from evaluation.repetition import METRICS

SETTINGS = ("temperature", "top_p", "repetition_penalty")
MAX_BANDS = 8  # more experts are shown as busiest, median and least busy: no eye follows twenty bands
MAX_STAGES, MAX_PROMPTS, MAX_GRID = 6, 4, 120
SAMPLE_CHARACTERS, GRID_CHARACTERS = 500, 400
BAND_POINTS = 4000  # of the bands of all layers together; more makes the file large and nothing clearer
LEAST_HEAT_SPAN = 0.1  # a table whose metrics are all close to the true text's has no reason to glow

Texts = dict[str, str]
Section = dict[str, Any]


def facts(subject: dict[str, Any], t: Texts, language: str) -> list[tuple[str, str]]:
    """Return (name, value) of the model under test."""
    steps = number(subject["step"], 0)
    if subject["total_steps"]:
        steps = t["of"].format(steps, number(subject["total_steps"], 0))
    return [
        (t["kind"], t[f"kind_{subject['kind']}"]),
        (t["parameters"], amount(subject["parameters"], language)),
        (t["vocab_size"], number(subject["vocab_size"], 0)),
        (t["steps_done"], steps),
        (t["tokens_seen"], amount(subject["tokens"], language)),
        (t["data"], subject["data"]),
    ]


def baselines(found: dict[str, dict[str, Any] | None], t: Texts) -> Section | None:
    """Return bars for the n-gram baselines, "model" and "train", from the highest loss to the lowest."""
    bars: list[Section] = [
        {
            "kind": name if name in ("model", "train") else "baseline",
            "label": t[name],
            "knows": t[f"{name}_knows"],
            "nats": row["nats"],
            "bits": row["bits_per_byte"],
        }
        for name, row in found.items()
        if row and finite(row["nats"])
    ]
    widest = max((bar["nats"] for bar in bars), default=0.0) or 1.0
    # of equal losses the model's comes first: it is not below the baseline
    bars.sort(key=lambda bar: (-bar["nats"], bar["kind"] == "baseline"))
    model = next((100 * bar["nats"] / widest for bar in bars if bar["kind"] == "model"), None)
    return {"bars": bars, "widest": widest, "model_at": model} if bars else None


def curves(found: dict[str, Any], bars: Section | None, alarms: Sequence[dict[str, Any]], t: Texts) -> list[Chart]:
    """Return the loss with the baselines, then one small chart for each metric that has points."""

    def curve(name: str, label: str = "value", style: str = "main") -> Curve:
        return Curve(t[label], found[name], style)

    levels = [(bar["label"], bar["nats"]) for bar in (bars or {"bars": []})["bars"] if bar["kind"] == "baseline"]
    marks = [(row["step"], t.get(f"alarm_{row['alarm']}", str(row["alarm"]))) for row in alarms]
    ceiling = 1.5 * max(nats for _, nats in levels) if levels else None
    loss = [curve("train_loss", "curve_train", "train"), curve("val_loss", "curve_val")]
    repeated = [
        curve("repetition", "curve_model"),
        curve("true_repetition", "curve_true", "true"),
        curve("loops", "curve_loops", "loop"),
    ]
    charts = [
        line_chart(t["chart_loss"], loss, plain, levels=levels, marks=marks, floor=None, ceiling=ceiling),
        line_chart(t["chart_repetition"], repeated, percent, ceiling=1.0),
        line_chart(t["chart_lr"], [curve("lr")], short),
        line_chart(t["chart_grad_norm"], [curve("grad_norm")], short, log=10),
        line_chart(t["chart_loss_scale"], [curve("loss_scale")], plain, log=2),
        line_chart(t["chart_update_ratio"], [curve("update_ratio")], short, log=10),
        line_chart(t["chart_unchanged"], [curve("unchanged")], percent, ceiling=1.0),
    ]
    return [chart for chart in charts if chart]


def samples(rows: Sequence[dict[str, Any]]) -> list[Section]:
    """Return for each prompt its continuations at several steps spread over the training."""
    by_prompt: dict[str, dict[int, str]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], {})[row["step"]] = row["text"]
    return [
        {
            "prompt": excerpt(prompt, SAMPLE_CHARACTERS),
            "stages": [
                {"step": step, "pieces": repeated_pieces(excerpt(texts[step], SAMPLE_CHARACTERS))}
                for step in _evenly(sorted(texts), MAX_STAGES)
            ],
        }
        for prompt, texts in list(by_prompt.items())[:MAX_PROMPTS]
    ]


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def experts(load: dict[str, Any] | None, t: Texts) -> list[tuple[Bands | None, Chart | None]]:
    """Return for each layer the experts' shares over time: as bands, or as three lines if there are many experts."""
    if not load:
        return []
    steps, layers = load["steps"], load["layers"]
    count = max(len(layer[0]) for layer in layers)
    columns = max(12, min(60, BAND_POINTS // (len(layers) * count)))
    found = [
        (None, _extremes(title, steps, layer, t))
        if count > MAX_BANDS
        else (stacked_bands(title, steps, layer, columns), None)
        for title, layer in ((t["layer"].format(k), layer) for k, layer in enumerate(layers))
    ]
    return [drawn for drawn in found if any(drawn)]


def _extremes(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], t: Texts) -> Chart | None:
    """Return the largest, the median and the smallest share at each step."""
    count = len(rows[0])
    named = (("busiest", -1, "loop"), ("middle", count // 2, "main"), ("least_busy", 0, "true"))
    lines = [
        Curve(t[name], [(step, sorted(row)[at]) for step, row in zip(steps, rows, strict=True)], style)
        for name, at, style in named
    ]
    return line_chart(title, lines, percent, levels=[(t["even_share"], 1 / count)])


def decoding(found: dict[str, Any] | None, t: Texts) -> Section | None:
    """Return the grid as a heat table: a cell's heat is its distance from the true text's metric, 1 for the largest."""
    if not found:
        return None
    grid, true = found["grid"][:MAX_GRID], found["true"]
    distances = {
        name: [abs(row[name] - true[name]) if None not in (row[name], true[name]) else 0.0 for row in grid]
        for name in METRICS
    }
    spans = {name: max(LEAST_HEAT_SPAN, *distances[name]) for name in METRICS}
    rows = [
        {
            "settings": [
                t["greedy_setting"] if (name, row[name]) == ("temperature", 0) else number(row[name])
                for name in SETTINGS
            ],
            "cells": [(row[name], round(distances[name][k] / spans[name], 2)) for name in METRICS],
            "sample": repeated_pieces(excerpt(row["sample"], GRID_CHARACTERS)),
            "preview": excerpt(" ".join(row["sample"].split()), 90),
            "best": k == found["best"],
        }
        for k, row in sorted(enumerate(grid), key=lambda pair: [pair[1][name] for name in SETTINGS])
    ]
    return found | {"rows": rows, "true": [true[name] for name in METRICS]}


def lengths(found: dict[str, Any], t: Texts) -> Section:
    """Return the histogram with its median marked, and the quantiles in words."""
    edges, tokens = found["histogram"]["edges"], found["tokens"]
    bars, ticks = histogram(edges, found["histogram"]["counts"], plain)
    labels = {"min": "smallest", "p10": "p10", "p50": "median", "p90": "p90", "p99": "p99", "max": "largest"}
    return {
        "bars": bars,
        "ticks": ticks,
        "quantiles": [(t[label], number(tokens[key], 0)) for key, label in labels.items()],
        "median_at": np.interp(tokens["p50"], edges, np.linspace(0, 100, len(edges))),
    }


def rule_value(rule: str, value: float | None) -> str:
    """Return a measure of self-repetition as people read it: runs are counted, the others are shares."""
    return plain(value) if rule == "runs" else percent(value)

"""From a diagnosis (or a corpus report) to what each section of the page shows; None or empty if there is nothing.

`t` holds the page's texts in its language (section "page" of report/locales/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diagnosis.report.charts import (
    Chart,
    Curve,
    histogram,
    line_chart,
    points_of,
    position,
    stacked_bands,
    whole_rows,
)
from diagnosis.report.format import (
    MISSING,
    amount,
    bucket_name,
    excerpt,
    finite,
    number,
    percent,
    plain,
    repeated_pieces,
    short,
    size,
)
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

BASELINES = ("uniform", "unigram", "bigram", "trigram")
SETTINGS = ("temperature", "top_p", "repetition_penalty")
SHARE_RULES = ("lines", "ngrams", "redundancy")  # of corpus/cleaning/repetition.py; runs are counted
MAX_BANDS = 8  # more experts are shown as busiest, median and least busy: no eye follows twenty bands
MAX_STAGES, MAX_PROMPTS, MAX_GRID, MAX_EXAMPLES = 6, 4, 120, 8
SAMPLE_CHARACTERS, GRID_CHARACTERS, EXAMPLE_CHARACTERS = 500, 400, 240
BAND_POINTS = 4000  # of the bands of all layers together; more makes the file large and nothing clearer
LEAST_HEAT_SPAN = 0.1  # a table whose metrics are all close to the true text's has no reason to glow

Texts = dict[str, str]
Section = dict[str, Any]


def rows_of(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list that may be missing."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list | tuple) else []


def tiles(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the (name, value) pairs that have a value."""
    return [(name, value) for name, value in pairs if value and value != MISSING]


def facts(subject: dict[str, Any], t: Texts, language: str) -> list[tuple[str, str]]:
    """Return (name, value) of the model under test."""
    step, total, kind = subject.get("step"), subject.get("total_steps"), subject.get("kind")
    steps = t["of"].format(number(step, 0), number(total, 0)) if finite(step) and finite(total) else number(step, 0)
    return tiles(
        [
            (t["kind"], str(t.get(f"kind_{kind}", kind) if kind else "")),
            (t["parameters"], amount(subject.get("parameters"), language)),
            (t["vocab_size"], number(subject.get("vocab_size"), 0)),
            (t["steps_done"], steps),
            (t["tokens_seen"], amount(subject.get("tokens"), language)),
            (t["data"], str(subject.get("data") or "")),
        ]
    )


def baselines(found: dict[str, Any] | None, t: Texts) -> Section | None:
    """Return bars for the baselines, the model and its training loss, from the highest loss to the lowest.

    `found` has the baselines as the diagnosis does (a list) or as the corpus report does (one object).
    """
    found = found or {}
    rows = rows_of(found.get("rungs")) or [{"name": name, **found[name]} for name in BASELINES if found.get(name)]
    rows += [{"name": name, **found[name]} for name in ("model", "train") if found.get(name)]
    bars: list[Section] = [
        {
            "kind": row.get("name") if row.get("name") in ("model", "train") else "baseline",
            "label": t.get(str(row.get("name"))) or row.get("label"),
            "knows": t.get(f"{row.get('name')}_knows", ""),
            "nats": row["nats"],
            "bits": row.get("bits_per_byte"),
        }
        for row in rows
        if finite(row.get("nats"))
    ]
    if not bars:
        return None
    widest = max(bar["nats"] for bar in bars)
    for bar in bars:
        bar["width"] = 100 * bar["nats"] / widest if widest > 0 else 0.0
    # of equal losses the model's comes first: it is not below the baseline
    bars.sort(key=lambda bar: (-bar["nats"], bar["kind"] == "baseline"))
    model = next((bar["width"] for bar in bars if bar["kind"] == "model"), None)
    return {"bars": bars, "sentence": found.get("sentence"), "model_at": model}


def offsets(rows: object, t: Texts) -> list[Section]:
    """Return the mean loss against the token at each offset, with the lowest marked."""
    found = [row for row in rows_of(rows) if finite(row.get("nats")) and finite(row.get("offset"))]
    nats = [row["nats"] for row in found]
    return [
        {
            "label": t.get(f"offset_{row['offset']}", t["offset_n"].format(row["offset"])),
            "nats": row["nats"],
            "width": 100 * row["nats"] / max(nats) if max(nats) > 0 else 0.0,
            "lowest": row["nats"] == min(nats),
            "expected": row["offset"] == 1,
        }
        for row in found
    ]


def figures(found: dict[str, Any] | None, messages: Messages) -> Section | None:
    """Return the minimal pairs as bars with intervals, and the bits a byte of each bucket."""
    found = found or {}
    pairs = [
        {
            "label": messages(f"minimal_pairs.{kind}"),
            "share": row["share"],
            "low": 100 * row["low"],
            "width": 100 * (row["high"] - row["low"]),
            "interval": f"{percent(row['low'])} \N{EN DASH} {percent(row['high'])}",
            "pairs": row["pairs"],
        }
        for kind, row in (found.get("minimal_pairs") or {}).items()
        if row and all(finite(row.get(name)) for name in ("share", "low", "high", "pairs"))
    ]
    buckets = [
        (messages(f"page.by_{key}"), [(bucket_name(row), number(row["bits_per_byte"], 3)) for row in rows])
        for key in ("position", "length")
        if (rows := _full(found.get(f"bits_per_byte_by_{key}")))
    ]
    return {"pairs": pairs, "buckets": buckets} if pairs or buckets else None


def _full(buckets: object) -> list[dict[str, Any]]:
    """Return the buckets of which everything is known that a page shows."""
    return [row for row in rows_of(buckets) if finite(row.get("bits_per_byte")) and finite(row.get("start"))]


def repetition(rows: object, t: Texts) -> Section | None:
    """Return a row for each metric and a column for each kind of text: true, sampled and greedy."""
    found = [row for row in rows_of(rows) if any(finite(row.get(name)) for name in METRICS)]
    if not found:
        return None
    return {
        "who": [(row.get("who"), row.get("label") or t.get(str(row.get("who")), "")) for row in found],
        "rows": [(t[name], t[f"{name}_means"], [row.get(name) for row in found]) for name in METRICS],
    }


def curves(found: dict[str, Any] | None, baselines_: Section | None, alarms: object, t: Texts) -> list[Chart]:
    """Return the loss with the baselines, then one small chart for each metric that has points."""
    points = {name: points_of(rows) for name, rows in (found or {}).items()}

    def curve(name: str, label: str = "value", style: str = "main") -> Curve:
        return Curve(t[label], points.get(name, []), style)

    levels = [(bar["label"], bar["nats"]) for bar in (baselines_ or {"bars": []})["bars"] if bar["kind"] == "baseline"]
    marks = [
        (row["step"], t.get(f"alarm_{row.get('alarm')}", str(row.get("alarm") or "")))
        for row in rows_of(alarms)
        if finite(row.get("step"))
    ]
    top = max((nats for _, nats in levels), default=None)
    loss = [curve("train_loss", "curve_train", "train"), curve("val_loss", "curve_val")]
    repeated = [
        curve("repetition", "curve_model"),
        curve("true_repetition", "curve_true", "true"),
        curve("loops", "curve_loops", "loop"),
    ]
    ceiling = 1.5 * top if top else None
    charts = [
        line_chart(t["chart_loss"], loss, plain, levels=levels, marks=marks, floor=None, ceiling=ceiling),
        line_chart(t["chart_repetition"], repeated, percent, ceiling=1.0),
        line_chart(t["chart_lr"], [curve("lr")], short),
        line_chart(t["chart_grad_norm"], [curve("grad_norm")], short, log=True),
        line_chart(t["chart_loss_scale"], [curve("loss_scale")], plain, log=True, log_base=2),
        line_chart(t["chart_update_ratio"], [curve("update_ratio")], short, log=True),
        line_chart(t["chart_unchanged"], [curve("unchanged")], percent, ceiling=1.0),
    ]
    return [chart for chart in charts if chart]


def samples(rows: object) -> list[Section]:
    """Return for each prompt its continuations at several steps spread over the training."""
    by_prompt: dict[str, dict[float, str]] = {}
    for row in rows_of(rows):
        if finite(row.get("step")):
            by_prompt.setdefault(str(row.get("prompt") or ""), {})[row["step"]] = str(row.get("text") or "")
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
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def experts(load: dict[str, Any] | None, t: Texts) -> Section | None:
    """Return for each layer the experts' shares over time: as bands, or as three lines if there are many experts."""
    steps, layers = (load or {}).get("steps") or [], (load or {}).get("layers") or []
    most = max((len(row) for layer in layers for row in layer or [] if row), default=0)
    if not most or not steps:
        return None
    bands, charts = [], []
    for k, layer in enumerate(layers):
        title = t["layer"].format(k)
        if most > MAX_BANDS:
            charts.append(_extremes(title, steps, layer or [], t))
        elif drawn := stacked_bands(title, steps, layer or [], max(12, min(60, BAND_POINTS // (len(layers) * most)))):
            last = ", ".join(percent(share) for share in drawn.last)
            bands.append({"chart": drawn, "summary": t["last_shares"].format(last)})
    charts = [chart for chart in charts if chart]
    return {"bands": bands, "charts": charts} if bands or charts else None


def _extremes(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], t: Texts) -> Chart | None:
    """Return the largest, the median and the smallest share at each step."""
    whole = [(step, sorted(row)) for step, row in whole_rows(steps, rows)]
    if not whole:
        return None
    count = len(whole[0][1])
    named = (("busiest", -1, "loop"), ("middle", count // 2, "main"), ("least_busy", 0, "true"))
    lines = [Curve(t[name], [(step, row[at]) for step, row in whole], style) for name, at, style in named]
    return line_chart(title, lines, percent, levels=[(t["even_share"], 1 / count)])


def decoding(found: dict[str, Any] | None, t: Texts) -> Section | None:
    """Return the grid as a heat table: a cell's heat is its distance from the true text's metric, 1 for the largest."""
    grid = rows_of((found or {}).get("grid"))[:MAX_GRID]
    if not found or not grid:
        return None
    true = found.get("true") or {}
    spans = {
        name: max((abs(row[name] - true[name]) for row in grid if finite(row.get(name))), default=0.0)
        for name in METRICS
        if finite(true.get(name))
    }

    def heat(value: Any, name: str) -> float:
        if not finite(value) or name not in spans:
            return 0.0
        return round(abs(value - true[name]) / max(spans[name], LEAST_HEAT_SPAN), 2)

    def show(name: str, value: Any) -> str:
        return t["greedy_setting"] if (name, value) == ("temperature", 0) else number(value)

    def order(index: int) -> list[float]:
        return [grid[index][key] if finite(grid[index].get(key)) else math.inf for key in SETTINGS]

    rows = [
        {
            "settings": [show(name, grid[k].get(name)) for name in SETTINGS],
            "cells": [(grid[k].get(name), heat(grid[k].get(name), name)) for name in METRICS],
            "sample": repeated_pieces(excerpt(grid[k].get("sample"), GRID_CHARACTERS)),
            "preview": excerpt(" ".join(str(grid[k].get("sample") or "").split()), 90),
            "best": k == found.get("best"),
        }
        for k in sorted(range(len(grid)), key=order)
    ]
    return {
        "rows": rows,
        "true": [true.get(name) for name in METRICS] if true else None,
        "prompt": excerpt(found.get("prompt"), SAMPLE_CHARACTERS),
        "sentence": found.get("sentence"),
    }


def corpus(report: dict[str, Any] | None, t: Texts, language: str) -> Section | None:
    """Return what prepare.py's report holds."""
    if not report:
        return None
    per_token, duplicates = report.get("characters_per_token") or {}, report.get("duplicates") or {}
    pairs = [
        {
            "kept": excerpt(row.get("kept"), EXAMPLE_CHARACTERS),
            "similarity": row.get("similarity"),
            "dropped": excerpt(row.get("dropped"), EXAMPLE_CHARACTERS),
        }
        for row in rows_of(duplicates.get("examples"))[:MAX_EXAMPLES]
    ]
    counts = tiles([(t[key], number(duplicates.get(key), 0)) for key in ("exact", "near")])
    return {
        "tiles": tiles(
            [
                (t["documents"], number(report.get("documents"), 0)),
                (t["tokens"], amount(report.get("tokens"), language)),
                (t["characters"], amount(report.get("characters"), language)),
                (t["bytes"], size(report.get("bytes"))),
                (t["per_token_train"], number(per_token.get("train"))),
                (t["per_token_val"], number(per_token.get("val"))),
                (t["traditional_share"], percent(report.get("traditional_share"))),
            ]
        ),
        "lengths": _lengths(report.get("lengths") or {}, t),
        "scripts": _shares(report.get("scripts"), t),
        "languages": _shares(report.get("languages"), t),
        "duplicates": {"counts": counts, "pairs": pairs} if counts or pairs else None,
        "rules": _rules(report.get("repetition") or {}, t),
        "baselines": baselines(report.get("ngram_baselines"), t),
    }


def _lengths(found: dict[str, Any], t: Texts) -> Section | None:
    """Return the histogram with its median marked, and the quantiles in words."""
    bins, tokens = found.get("histogram") or {}, found.get("tokens") or {}
    edges = bins.get("edges") or []
    bars, ticks = histogram(edges, bins.get("counts") or [], plain) or ([], [])
    labels = {
        "min": t["smallest"],
        "p10": t["p10"],
        "p50": t["median"],
        "p90": "90 %",
        "p99": "99 %",
        "max": t["largest"],
    }
    quantiles = tiles([(label, number(tokens.get(key), 0)) for key, label in labels.items()])
    median = position(tokens["p50"], edges) if bars and finite(tokens.get("p50")) else None
    return {"bars": bars, "ticks": ticks, "quantiles": quantiles, "median_at": median} if bars or quantiles else None


def _shares(found: object, t: Texts) -> list[Section]:
    """Return shares from the largest, by their names in the page's language, without those that round to nothing."""
    pairs = [(name, share) for name, share in found.items() if finite(share)] if isinstance(found, dict) else []
    return [
        {"label": t.get(name.lower(), name), "share": share, "width": 100 * min(max(share, 0), 1)}
        for name, share in sorted(pairs, key=lambda pair: -pair[1])
        if share >= 0.0005
    ]


def _rules(found: dict[str, Any], t: Texts) -> Section | None:
    """Return one row for each rule of self-repetition, and texts that were dropped."""
    limits, counts, shares = (found.get(key) or {} for key in ("thresholds", "by_rule", "shares"))
    names = list(dict.fromkeys([*limits, *counts, *shares]))
    if not names and not finite(found.get("scored")):
        return None

    def show(name: object, value: float | None) -> str:
        return percent(value) if name in SHARE_RULES else plain(value)

    rows = [
        {
            "rule": t.get(f"rule_{name}", name),
            "meaning": t.get(f"rule_{name}_means"),
            "limit": show(name, limits.get(name)),
            "dropped": counts.get(name),
            "quantiles": [show(name, (shares.get(name) or {}).get(key)) for key in ("p50", "p90", "p99")],
        }
        for name in names
    ]
    examples = [
        {
            "rule": t.get(f"rule_{row.get('rule')}", row.get("rule")),
            "value": show(row.get("rule"), row.get("value")),
            "pieces": repeated_pieces(excerpt(row.get("text"), EXAMPLE_CHARACTERS)),
        }
        for row in rows_of(found.get("examples"))[:MAX_EXAMPLES]
    ]
    lead = t["rules_lead"].format(number(found.get("scored"), 0), number(found.get("dropped"), 0))
    return {"rows": rows, "examples": examples, "lead": lead}


def checks(rows: object, t: Texts) -> list[Section]:
    """Return preflight's lines, each with its level; one that only says ok or not is a pass or a fail."""
    found = []
    for row in rows_of(rows):
        level = row.get("level")
        if level not in ("pass", "warn", "fail"):
            level = "pass" if row.get("ok") else "fail"
        # "mend" in the reports of older runs
        hint = None if level == "pass" else row.get("hint") or row.get("mend")
        text = row.get("text") or row.get("id") or ""
        found.append({"level": level, "label": t[level], "text": text, "hint": hint})
    return found

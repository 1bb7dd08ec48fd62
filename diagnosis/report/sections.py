"""From a diagnosis (or a corpus report) to what each section of the page draws; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diagnosis.report.charts import (
    Bands,
    Chart,
    Curve,
    finite,
    histogram,
    line_chart,
    points_of,
    position,
    stacked_bands,
    whole_rows,
)
from diagnosis.report.format import amount, excerpt, number, percent, plain, repeated_pieces, short, size

RUNGS = ("uniform", "unigram", "bigram", "trigram")
SETTINGS = ("temperature", "top_p", "repetition_penalty")
MEASURES = ("repetition", "copying", "distinct_2", "loops")
SHARE_RULES = ("lines", "ngrams", "redundancy")
"""The rules of corpus/cleaning/repetition.py that measure a share; runs are counted."""
MAX_BANDS = 8
"""More experts than this are shown as busiest, middle and idlest: no eye follows twenty bands."""
MAX_STAGES, MAX_PROMPTS, MAX_GRID, MAX_EXAMPLES = 6, 4, 120, 8
SAMPLE_CHARACTERS, GRID_CHARACTERS, EXAMPLE_CHARACTERS = 500, 400, 240
BAND_POINTS = 4000
"""Points of all the bands of all layers together; more makes the file large and nothing clearer."""

Words = dict[str, str]
Section = dict[str, Any]


def rows_of(value: object) -> list[dict[str, Any]]:
    """The objects of a list that may be missing."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list | tuple) else []


def facts(subject: dict[str, Any], words: Words, language: str) -> list[tuple[str, str]]:
    """(name, value) of what was judged; the missing ones are left out."""
    step, total = subject.get("step"), subject.get("total_steps")
    steps = number(step, 0) if finite(step) else ""
    if steps and finite(total):
        steps = words["of"].format(steps, number(total, 0))
    kind = subject.get("kind")
    found = [
        (words["kind"], words.get(f"kind_{kind}", kind) if kind else ""),
        (words["parameters"], amount(subject.get("parameters"), language)),
        (words["vocab_size"], number(subject.get("vocab_size"), 0)),
        (words["steps_done"], steps),
        (words["tokens_seen"], amount(subject.get("tokens"), language)),
        (words["data"], subject.get("data") or ""),
    ]
    return [(name, str(value)) for name, value in found if value and value != "\N{EN DASH}"]


def ladder(found: dict[str, Any] | None, words: Words) -> Section | None:
    """The rungs, the model and its training loss, from the highest loss to the lowest.

    Takes the diagnosis' form (a list of rungs) or the corpus report's (an object of them).
    """
    if not found:
        return None
    rungs = rows_of(found.get("rungs")) or [{"name": name, **found[name]} for name in RUNGS if found.get(name)]
    bars: list[Section] = [
        {
            "name": row.get("name"),
            "kind": "rung",
            "label": words.get(str(row.get("name"))) or row.get("label"),
            "nats": row.get("nats"),
            "bits": row.get("bits_per_byte"),
        }
        for row in rungs
    ]
    for kind in ("model", "train"):
        side = found.get(kind)
        if side:
            bars.append(
                {
                    "name": kind,
                    "kind": kind,
                    "label": words[kind],
                    "nats": side.get("nats"),
                    "bits": side.get("bits_per_byte"),
                }
            )
    bars = [bar for bar in bars if finite(bar["nats"])]
    if not bars:
        return None
    widest = max(bar["nats"] for bar in bars)
    for bar in bars:
        bar["knows"] = words.get(f"{bar['name']}_knows", "")
        bar["width"] = 100 * bar["nats"] / widest if widest > 0 else 0.0
    # Of equal losses the model's comes first: it is not below the rung.
    bars.sort(key=lambda bar: (-bar["nats"], bar["kind"] == "rung"))
    model = next((bar["width"] for bar in bars if bar["kind"] == "model"), None)
    return {"bars": bars, "sentence": found.get("sentence"), "model_at": model}


def offsets(rows: object, words: Words) -> list[Section]:
    """Mean loss against the token at each offset, with the lowest marked."""
    found = [row for row in rows_of(rows) if finite(row.get("nats")) and finite(row.get("offset"))]
    if not found:
        return []
    lowest, widest = min(row["nats"] for row in found), max(row["nats"] for row in found)
    return [
        {
            "label": words.get(f"offset_{row['offset']}", words["offset_n"].format(row["offset"])),
            "nats": row["nats"],
            "width": 100 * row["nats"] / widest if widest > 0 else 0.0,
            "lowest": row["nats"] == lowest,
            "expected": row["offset"] == 1,
        }
        for row in found
    ]


def repetition(rows: object, words: Words) -> Section | None:
    """A row a measure, a column a kind of text: the true one, sampled and greedy."""
    found = [row for row in rows_of(rows) if any(finite(row.get(name)) for name in MEASURES)]
    if not found:
        return None
    return {
        "who": [(row.get("who"), row.get("label") or words.get(str(row.get("who")), "")) for row in found],
        "rows": [(words[name], words[f"{name}_means"], [row.get(name) for row in found]) for name in MEASURES],
    }


def curves(found: dict[str, Any] | None, ladder_: Section | None, alarms: object, words: Words) -> list[Chart]:
    """The loss with the rungs, then one small chart a measure; those without points are left out."""
    found = found or {}
    points = {name: points_of(rows) for name, rows in found.items()}

    def curve(name: str, label: str, style: str) -> Curve:
        return Curve(words[label], points.get(name, []), style)

    rungs = [(bar["label"], bar["nats"]) for bar in (ladder_ or {"bars": []})["bars"] if bar["kind"] == "rung"]
    marks = [
        (row["step"], words.get(f"alarm_{row.get('alarm')}", str(row.get("alarm") or "")))
        for row in rows_of(alarms)
        if finite(row.get("step"))
    ]
    top = max((nats for _, nats in rungs), default=None)
    charts = [
        line_chart(
            words["chart_loss"],
            [curve("train_loss", "curve_train", "train"), curve("val_loss", "curve_val", "main")],
            plain,
            short,
            levels=rungs,
            marks=marks,
            floor=None,
            ceiling=1.5 * top if top else None,
        ),
        line_chart(
            words["chart_repetition"],
            [
                curve("repetition", "curve_model", "main"),
                curve("true_repetition", "curve_true", "true"),
                curve("loops", "curve_loops", "loop"),
            ],
            percent,
            short,
            ceiling=1.0,
        ),
        line_chart(words["chart_lr"], [curve("lr", "value", "main")], short, short),
        line_chart(words["chart_grad_norm"], [curve("grad_norm", "value", "main")], short, short, log=True),
        line_chart(
            words["chart_loss_scale"], [curve("loss_scale", "value", "main")], plain, short, log=True, log_base=2
        ),
        line_chart(words["chart_update_ratio"], [curve("update_ratio", "value", "main")], short, short, log=True),
        line_chart(words["chart_unchanged"], [curve("unchanged", "value", "main")], percent, short, ceiling=1.0),
    ]
    return [chart for chart in charts if chart]


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def samples(rows: object) -> list[Section]:
    """Per prompt, its continuations at several steps spread over the training."""
    by_prompt: dict[str, dict[float, str]] = {}
    for row in rows_of(rows):
        if finite(row.get("step")):
            by_prompt.setdefault(str(row.get("prompt") or ""), {})[row["step"]] = str(row.get("text") or "")
    return [
        {
            "prompt": excerpt(prompt, SAMPLE_CHARACTERS),
            "stages": [
                {"step": step, "pieces": repeated_pieces(excerpt(texts[step], SAMPLE_CHARACTERS))}
                for step in evenly(sorted(texts), MAX_STAGES)
            ],
        }
        for prompt, texts in list(by_prompt.items())[:MAX_PROMPTS]
    ]


def experts(load: dict[str, Any] | None, words: Words) -> Section | None:
    """Per layer the shares of the experts over time: as bands, or as three lines where experts are many."""
    steps, layers = (load or {}).get("steps") or [], (load or {}).get("layers") or []
    widths = [len(row) for layer in layers for row in layer or [] if row]
    if not widths or not steps:
        return None
    if max(widths) <= MAX_BANDS:
        columns = max(12, min(60, BAND_POINTS // (len(layers) * max(widths))))
        bands = [
            stacked_bands(words["layer"].format(k), steps, layer or [], short, columns)
            for k, layer in enumerate(layers)
        ]
        kept = [_banded(band, words) for band in bands if band]
        return {"bands": kept, "charts": []} if kept else None
    charts = [_extremes(words["layer"].format(k), steps, layer or [], words) for k, layer in enumerate(layers)]
    drawn = [chart for chart in charts if chart]
    return {"bands": [], "charts": drawn} if drawn else None


def _banded(bands: Bands, words: Words) -> Section:
    return {"chart": bands, "summary": words["last_shares"].format(", ".join(percent(share) for share in bands.last))}


def _extremes(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], words: Words) -> Chart | None:
    """The busiest, the middle and the idlest share at each step."""
    whole = [(step, sorted(row)) for step, row in whole_rows(steps, rows)]
    if not whole:
        return None
    named = (("busiest", -1, "loop"), ("middle", len(whole[0][1]) // 2, "main"), ("idlest", 0, "true"))
    lines = [Curve(words[name], [(step, row[at]) for step, row in whole], style) for name, at, style in named]
    return line_chart(title, lines, percent, short, levels=[(words["even_share"], 1 / len(whole[0][1]))])


def decoding(found: dict[str, Any] | None, words: Words) -> Section | None:
    """The grid as a heat table: `heat` is a figure's distance from the true text's, as a share of the furthest one."""
    grid = rows_of((found or {}).get("grid"))[:MAX_GRID]
    if not found or not grid:
        return None
    true = found.get("true") or {}
    spans = {
        name: max((abs(row[name] - true[name]) for row in grid if finite(row.get(name))), default=0.0)
        for name in MEASURES
        if finite(true.get(name))
    }

    def heat(row: dict[str, Any], name: str) -> float:
        if not finite(row.get(name)) or name not in spans:
            return 0.0
        # A table whose figures all stand close to the truth has no reason to glow.
        return round(abs(row[name] - true[name]) / max(spans[name], 0.1), 2)

    def settings(row: dict[str, Any]) -> list[float]:
        return [row[key] if finite(row.get(key)) else math.inf for key in SETTINGS]

    ordered = sorted(enumerate(grid), key=lambda place: settings(place[1]))
    rows = [
        {
            "settings": [
                words["greedy_setting"] if (key, row.get(key)) == ("temperature", 0) else number(row.get(key))
                for key in SETTINGS
            ],
            "cells": [(row.get(name), heat(row, name)) for name in MEASURES],
            "sample": repeated_pieces(excerpt(row.get("sample"), GRID_CHARACTERS)),
            "preview": excerpt(" ".join(str(row.get("sample") or "").split()), 90),
            "best": k == found.get("best"),
        }
        for k, row in ordered
    ]
    return {
        "rows": rows,
        "true": [true.get(name) for name in MEASURES] if true else None,
        "prompt": excerpt(found.get("prompt"), SAMPLE_CHARACTERS),
        "sentence": found.get("sentence"),
    }


def _shares(found: object, words: Words) -> list[Section]:
    """Shares from the largest, by their names in the page's language; none that rounds to nothing."""
    pairs = [(name, share) for name, share in found.items() if finite(share)] if isinstance(found, dict) else []
    return [
        {"label": words.get(name.lower(), name), "share": share, "width": 100 * min(max(share, 0), 1)}
        for name, share in sorted(pairs, key=lambda pair: -pair[1])
        if share >= 0.0005
    ]


def _lengths(found: dict[str, Any], words: Words) -> Section | None:
    """The histogram with its median marked, and the quantiles in words."""
    bins = found.get("histogram") or {}
    edges, tokens = bins.get("edges") or [], found.get("tokens") or {}
    drawn = histogram(edges, bins.get("counts") or [], plain)
    quantiles = [
        (label, number(tokens[key], 0))
        for key, label in (
            ("min", words["smallest"]),
            ("p10", "10 %"),
            ("p50", words["median"]),
            ("p90", "90 %"),
            ("p99", "99 %"),
            ("max", words["largest"]),
        )
        if finite(tokens.get(key))
    ]
    if not drawn:
        return {"bars": [], "ticks": [], "quantiles": quantiles, "median_at": None} if quantiles else None
    median = position(tokens["p50"], edges) if finite(tokens.get("p50")) else None
    return {"bars": drawn[0], "ticks": drawn[1], "quantiles": quantiles, "median_at": median}


def _rules(found: dict[str, Any], words: Words) -> Section | None:
    """One row a rule of self-repetition, and texts that were dropped."""
    limits, counts, shares = (found.get(key) or {} for key in ("thresholds", "by_rule", "shares"))
    names = list(dict.fromkeys([*limits, *counts, *shares]))
    if not names and not finite(found.get("scored")):
        return None

    def show(name: object, value: float | None) -> str:
        return percent(value) if name in SHARE_RULES else plain(value)

    rows = [
        {
            "rule": words.get(f"rule_{name}", name),
            "meaning": words.get(f"rule_{name}_means"),
            "limit": show(name, limits.get(name)),
            "dropped": counts.get(name),
            "quantiles": [show(name, (shares.get(name) or {}).get(key)) for key in ("p50", "p90", "p99")],
        }
        for name in names
    ]
    examples = [
        {
            "rule": words.get(f"rule_{row.get('rule')}", row.get("rule")),
            "value": show(row.get("rule"), row.get("value")),
            "pieces": repeated_pieces(excerpt(row.get("text"), EXAMPLE_CHARACTERS)),
        }
        for row in rows_of(found.get("examples"))[:MAX_EXAMPLES]
    ]
    lead = words["rules_lead"].format(number(found.get("scored"), 0), number(found.get("dropped"), 0))
    return {"rows": rows, "examples": examples, "lead": lead}


def corpus(report: dict[str, Any] | None, words: Words, language: str) -> Section | None:
    """Everything that prepare.py's report holds."""
    if not report:
        return None
    per_token = report.get("characters_per_token") or {}
    tiles = [
        (words["documents"], number(report.get("documents"), 0)),
        (words["tokens"], amount(report.get("tokens"), language)),
        (words["characters"], amount(report.get("characters"), language)),
        (words["bytes"], size(report.get("bytes"))),
        (words["per_token_train"], number(per_token.get("train"))),
        (words["per_token_val"], number(per_token.get("val"))),
        (words["traditional_share"], percent(report.get("traditional_share"))),
    ]
    duplicates = report.get("duplicates") or {}
    pairs = [
        {
            "kept": excerpt(row.get("kept"), EXAMPLE_CHARACTERS),
            "similarity": row.get("similarity"),
            "dropped": excerpt(row.get("dropped"), EXAMPLE_CHARACTERS),
        }
        for row in rows_of(duplicates.get("examples"))[:MAX_EXAMPLES]
    ]
    found = [(words[key], number(duplicates[key], 0)) for key in ("exact", "near") if finite(duplicates.get(key))]
    return {
        "tiles": [(name, value) for name, value in tiles if value != "\N{EN DASH}"],
        "lengths": _lengths(report.get("lengths") or {}, words),
        "scripts": _shares(report.get("scripts"), words),
        "languages": _shares(report.get("languages"), words),
        "duplicates": {"counts": found, "pairs": pairs} if found or pairs else None,
        "rules": _rules(report.get("repetition") or {}, words),
        "ladder": ladder(report.get("ngram_baselines"), words),
    }


def checks(rows: object, words: Words) -> list[Section]:
    """Preflight's lines, each with its level; what only says ok or not is a pass or a fail."""
    found = []
    for row in rows_of(rows):
        level = row.get("level")
        if level not in ("pass", "warn", "fail"):
            level = "pass" if row.get("ok") else "fail"
        found.append(
            {
                "level": level,
                "label": words[level],
                "text": row.get("text") or row.get("id") or "",
                "mend": row.get("hint", row.get("mend")) if level != "pass" else None,
            }
        )
    return found

"""A comparison as one HTML file that needs nothing else, in the look of the diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diagnosis.report.charts import Chart, Curve, line_chart
from diagnosis.report.format import excerpt, number, plain, repeated_pieces
from diagnosis.report.html import render
from diagnosis.report.messages import Messages
from experiments.comparison import LOCALES
from experiments.run_figures import AXES
from experiments.statistics import ALPHA
from experiments.table import Comparison, answer, figures, measure, state

TEMPLATES = Path(__file__).with_name("templates")
COLOURS = 8  # experiments that get one of their own: no eye tells forty apart
MOST_PROMPTS, MOST_TEXTS, MOST_PAIRS, SAMPLE_CHARACTERS = 3, 8, 40, 400
EARLY = 0.25  # of the longest curve: where the losses fall too fast to share a scale with the rest
UNITS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0))


def page(found: Comparison) -> str:
    """Return the page of a comparison, in its own language."""
    messages = Messages(found["language"], LOCALES)
    t = messages.section("page")
    experiments = found["experiments"]
    runs = [run for experiment in experiments for run in experiment["runs"]]
    cells = [figures(experiment, found, messages) for experiment in experiments]
    parts = {
        "differences": list(found["differences"].items()),
        "pairs": [_pair(pair, messages) for pair in found["pairs"][:MOST_PAIRS]],
        "curves": _charts(found, messages),
        "samples": [_samples(sample) for sample in found["samples"][:MOST_PROMPTS]],
        "all_runs": [_run(run, t, messages) for run in runs] if len(runs) > 1 else [],
        "notes": found["notes"],
    }
    return render(
        "comparison.html.j2",
        t,
        folder=TEMPLATES,
        language=found["language"],
        verdict=found["verdict"],
        count=t["count"].format(len(runs), len(experiments)),
        measured=messages("page.measured", measure=measure(found, messages), unit=messages(found["unit"])),
        name=messages("table.name"),
        headings=list(cells[0]),
        rows=[(row["label"], _style(k), list(cells[k].values())) for k, row in enumerate(experiments)],
        keys=_keys(experiments, t),
        curves_lead=t["curves_lead"].format(unit=messages(found["unit"])),
        pairs_lead=t["pairs_lead"].format(alpha=ALPHA),
        more_pairs=_more(len(found["pairs"]) - MOST_PAIRS, messages),
        more_texts=_more(max((len(each["texts"]) for each in found["samples"]), default=0) - MOST_TEXTS, messages),
        contents=[
            (anchor, t[anchor]) for anchor in ("experiments", *parts) if anchor == "experiments" or parts[anchor]
        ],
        **parts,
    )


def _more(count: int, messages: Messages) -> str:
    """Return the line that says how many are not shown, nothing if all are."""
    return messages("table.more", count=count) if count > 0 else ""


def _style(place: int) -> str:
    return f"c{place}" if place < COLOURS else "rest"


def _keys(experiments: Sequence[dict[str, Any]], t: dict[str, str]) -> list[tuple[str, str]]:
    """Return (label, style) of each colour in the charts."""
    keys = [(row["label"], _style(k)) for k, row in enumerate(experiments[:COLOURS])]
    return keys + ([(t["others"], "rest")] if len(experiments) > COLOURS else [])


def _pair(pair: dict[str, Any], messages: Messages) -> list[str]:
    interval = "" if pair["margin"] is None else f"± {pair['margin']:.4f}"
    p = "" if pair["p"] is None else f"{pair['p']:.2g}"
    return [pair["better"], pair["worse"], f"{pair['difference']:.4f}", interval, p, answer(pair, messages)]


def _charts(found: Comparison, messages: Messages) -> list[Chart]:
    """Return the validation curves against each axis that is known, the one that was asked for first."""
    first = found["by"] or "tokens"
    order = [first, *(axis for axis in AXES if axis != first)]
    return [chart for axis in order if (chart := _chart(found, axis, messages))]


def _chart(found: Comparison, axis: str, messages: Messages) -> Chart | None:
    lines = [
        (row["label"], run["curves"][axis], _style(k))
        for k, row in enumerate(found["experiments"])
        for run in row["runs"]
        if run["curves"][axis]
    ]
    if not lines:
        return None
    longest = max(points[-1][0] for _, points, _ in lines)
    title = messages("page.chart", axis=messages(f"axis.{axis}"))
    scale = 1.0
    if axis == "time":
        unit, scale = next(pair for pair in reversed(UNITS) if longest >= 2 * pair[1] or pair[1] == 1.0)
        title += f" ({messages('page.' + unit)})"
    # two evaluations of one run at least: the last ones alone would have every line at the upper edge until its end
    late = [[y for x, y in points if x >= EARLY * longest] for _, points, _ in lines]
    scaled = late if max(map(len, late)) > 1 else [[y for _, y in points] for _, points, _ in lines]
    low, high = min(map(min, filter(None, scaled))), max(map(max, filter(None, scaled)))
    baselines = (found["baselines"] or {}).items()
    levels = [(messages(f"page.{name}"), value) for name, value in baselines if low <= value <= high]
    # the best on top of the others
    curves = [Curve(label, [(x / scale, y) for x, y in points], style) for label, points, style in reversed(lines)]
    return line_chart(title, curves, plain, levels=levels, floor=None, ceiling=high, whole_steps=axis == "step")


def _samples(sample: dict[str, Any]) -> dict[str, Any]:
    texts = [
        {
            "label": row["label"],
            "step": row["step"],
            # another tokenizer's prompt may be longer than the shared one
            "pieces": repeated_pieces(excerpt(row["prompt"][len(sample["prompt"]) :] + row["text"], SAMPLE_CHARACTERS)),
        }
        for row in sample["texts"][:MOST_TEXTS]
    ]
    return {"prompt": excerpt(sample["prompt"], SAMPLE_CHARACTERS), "texts": texts}


def _run(run: dict[str, Any], t: dict[str, str], messages: Messages) -> list[str]:
    steps = number(run["step"], 0)
    if run["total_steps"]:
        steps = t["of"].format(steps, number(run["total_steps"], 0))
    best = number(run["best_loss"], 4)
    return [run["name"], str(run["seed"]), best, steps, run["reason"] or state([run], messages)]

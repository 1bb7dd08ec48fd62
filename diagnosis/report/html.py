"""The diagnosis as one HTML file that needs nothing else: no network, no scripts, light and dark, desktop and phone.

Path("report.html").write_text(page(diagnosis), encoding="utf-8")
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from diagnosis.report import format, sections
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

TEMPLATES = Path(__file__).with_name("templates")


def page(diagnosis: dict[str, Any]) -> str:
    """Return the page of a diagnosis, in its own language.

    What the diagnosis lacks is left out. Long curves are thinned and long texts cut, so that the file stays below half
    a megabyte.
    """
    language, verdict, losses = diagnosis["language"], diagnosis["verdict"], diagnosis["ladder"]
    messages = Messages(language)
    t = messages.section("page")
    rows = {row["name"]: row for row in losses["rungs"]} | {name: losses[name] for name in ("model", "train")}
    bars = sections.baselines(rows, t)
    shown = {
        "causes": diagnosis["causes"],
        "baselines": bars or diagnosis["offsets"],
        "repetition": diagnosis["repetition"],
        "samples": sections.samples(diagnosis["samples"]),
        "curves": sections.curves(diagnosis["curves"], bars, diagnosis["alarms"], t),
        "experts": sections.experts(diagnosis["expert_load"], t),
        "figures": diagnosis["figures"],
        "decoding": sections.decoding(diagnosis["decoding"], t),
        "corpus": diagnosis["corpus"],
        "checks": diagnosis["alarms"] or diagnosis["preflight"],
        "notes": diagnosis["notes"],
    }
    state = "parrots" if verdict["parrots"] else "healthy" if verdict["healthy"] else "unknown"
    return render(
        "page.html.j2",
        t,
        **dict[str, Any](diagnosis | shown | {"baselines": bars}),
        contents=[(name, t.get(f"{name}_title", t[name])) for name in shown if shown[name]],
        state="faulty" if state == "unknown" and diagnosis["causes"] else state,
        facts=sections.facts(diagnosis["subject"], t, language),
        columns=(*sections.SETTINGS, *METRICS),
        metrics=METRICS,
        pair_names=messages.section("minimal_pairs"),
    )


def report_page(report: dict[str, Any], language: str = "en", heading: str = "") -> str:
    """Return the page of a corpus alone, from what prepare.py writes as report.json."""
    t = Messages(language).section("page")
    return render("report.html.j2", t, language=language, corpus=report, heading=heading)


def render(template: str, t: dict[str, str], *, folder: Path = TEMPLATES, **found: Any) -> str:
    """Fill in one template with its `language`, everything escaped; one of another `folder` may build on those here."""
    return format.printable(_environment(folder).get_template(template).render(t=t, **found))


@cache
def _environment(folder: Path) -> Environment:
    """Return the templates, compiled once; what is missing prints as nothing."""
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    shown = (format.number, format.percent, format.amount, format.size, format.bucket_name, format.excerpt)
    environment.filters |= {function.__name__: function for function in (*shown, format.repeated_pieces)}
    environment.globals |= {"baselines_of": sections.baselines, "lengths_of": sections.lengths}
    environment.filters["rule_value"] = sections.rule_value
    return environment

"""The diagnosis as one HTML file that needs nothing else: no network, no scripts, light and dark, desktop and phone.

Path("report.html").write_text(page(diagnosis), encoding="utf-8")
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from diagnosis.report import sections as sections
from diagnosis.report.charts import finite
from diagnosis.report.format import FILTERS, printable
from diagnosis.report.page_messages import words

TEMPLATES = Path(__file__).with_name("templates")


def page(diagnosis: dict[str, Any]) -> str:
    """The whole page of a diagnosis, in its own language.

    What the diagnosis lacks (null, empty, or not finite) is left out. Long curves are thinned and long texts cut, so
    that the file stays below half a megabyte.
    """
    language = diagnosis.get("language") or "en"
    t = words(language)
    verdict, subject = diagnosis.get("verdict") or {}, diagnosis.get("subject") or {}
    ladder = sections.ladder(diagnosis.get("ladder"), t)
    found = {
        "causes": sections.rows_of(diagnosis.get("causes")),
        "ladder": ladder,
        "offsets": sections.offsets(diagnosis.get("offsets"), t),
        "repetition": sections.repetition(diagnosis.get("repetition"), t),
        "samples": sections.samples(diagnosis.get("samples")),
        "curves": sections.curves(diagnosis.get("curves"), ladder, diagnosis.get("alarms"), t),
        "experts": sections.experts(diagnosis.get("expert_load"), t),
        "decoding": sections.decoding(diagnosis.get("decoding"), t),
        "corpus": sections.corpus(diagnosis.get("corpus"), t, language),
        "alarms": sections.rows_of(diagnosis.get("alarms")),
        "preflight": sections.checks(diagnosis.get("preflight"), t),
        "notes": [str(note) for note in diagnosis.get("notes") or [] if note],
    }
    state = (
        "parrots"
        if verdict.get("parrots")
        else "healthy"
        if verdict.get("healthy")
        else "ailing"
        if diagnosis.get("causes")
        else "unknown"
    )
    return _render(
        "page.html.j2",
        language,
        t,
        **found,
        contents=_contents(found, t),
        state=state,
        headline=verdict.get("headline") or t[state],
        subject=str(subject.get("path") or ""),
        facts=sections.facts(subject, t, language),
        settings=sections.SETTINGS,
        measures=sections.MEASURES,
    )


def report_page(report: dict[str, Any], language: str = "en", heading: str = "") -> str:
    """The page of a corpus alone: what prepare.py writes as report.json."""
    t = words(language)
    return _render("report.html.j2", language, t, corpus=sections.corpus(report, t, language), heading=heading)


def _contents(found: dict[str, Any], t: dict[str, str]) -> list[tuple[str, str]]:
    """(anchor, title) of the sections that the page has."""
    shown = [
        ("causes", t["causes"], found["causes"]),
        ("ladder", t["ladder"], found["ladder"] or found["offsets"]),
        ("repetition", t["repetition_section"], found["repetition"]),
        ("samples", t["samples"], found["samples"]),
        ("curves", t["curves"], found["curves"]),
        ("experts", t["experts"], found["experts"]),
        ("decoding", t["decoding"], found["decoding"]),
        ("corpus", t["corpus"], found["corpus"]),
        ("checks", t["checks"], found["alarms"] or found["preflight"]),
        ("notes", t["notes"], found["notes"]),
    ]
    return [(anchor, title) for anchor, title, there in shown if there]


def _render(template: str, language: str, t: dict[str, str], **found: Any) -> str:
    """One template with everything escaped."""
    return printable(_environment().get_template(template).render(t=t, language=language, **found))


@cache
def _environment() -> Environment:
    """The templates, compiled once; what is missing prints as nothing."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    environment.filters.update(FILTERS)
    environment.filters["is_number"] = finite
    return environment

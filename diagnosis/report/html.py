"""The diagnosis as one HTML file that needs nothing else: no network, no scripts, light and dark, desktop and phone.

Path("report.html").write_text(page(diagnosis), encoding="utf-8")
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from diagnosis.report import sections
from diagnosis.report.format import finite, number, percent, printable
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

TEMPLATES = Path(__file__).with_name("templates")


def page(diagnosis: dict[str, Any]) -> str:
    """Return the page of a diagnosis, in its own language.

    What the diagnosis lacks (null, empty, or not finite) is left out. Long curves are thinned and long texts cut, so
    that the file stays below half a megabyte.
    """
    language = diagnosis.get("language") or "en"
    t = Messages(language).section("page")
    get = diagnosis.get
    verdict, subject = get("verdict") or {}, get("subject") or {}
    baselines = sections.baselines(get("ladder"), t)
    found = {
        "causes": sections.rows_of(get("causes")),
        "baselines": baselines,
        "offsets": sections.offsets(get("offsets"), t),
        "figures": sections.figures(get("figures"), Messages(language)),
        "repetition": sections.repetition(get("repetition"), t),
        "samples": sections.samples(get("samples")),
        "curves": sections.curves(get("curves"), baselines, get("alarms"), t),
        "experts": sections.experts(get("expert_load"), t),
        "decoding": sections.decoding(get("decoding"), t),
        "corpus": sections.corpus(get("corpus"), t, language),
        "alarms": sections.rows_of(get("alarms")),
        "preflight": sections.checks(get("preflight"), t),
        "notes": [str(note) for note in get("notes") or [] if note],
    }
    if verdict.get("parrots"):
        state = "parrots"
    elif verdict.get("healthy"):
        state = "healthy"
    else:
        state = "faulty" if found["causes"] else "unknown"
    return render(
        "page.html.j2",
        language,
        t,
        **found,
        contents=_contents(found, t),
        state=state,
        headline=verdict.get("headline") or t[state],
        subject=str(subject.get("path") or ""),
        facts=sections.facts(subject, t, language),
        columns=(*sections.SETTINGS, *METRICS),
    )


def report_page(report: dict[str, Any], language: str = "en", heading: str = "") -> str:
    """Return the page of a corpus alone, from what prepare.py writes as report.json."""
    t = Messages(language).section("page")
    return render("report.html.j2", language, t, corpus=sections.corpus(report, t, language), heading=heading)


def _contents(found: dict[str, Any], t: dict[str, str]) -> list[tuple[str, str]]:
    """Return (anchor, title) of the sections that the page has."""
    shown = found | {
        "baselines": found["baselines"] or found["offsets"],
        "checks": found["alarms"] or found["preflight"],
    }
    order = (
        "causes",
        "baselines",
        "repetition",
        "samples",
        "curves",
        "experts",
        "figures",
        "decoding",
        "corpus",
        "checks",
        "notes",
    )
    return [(anchor, t.get(f"{anchor}_title", t[anchor])) for anchor in order if shown[anchor]]


def render(template: str, language: str, t: dict[str, str], *, folder: Path = TEMPLATES, **found: Any) -> str:
    """Fill in one template, with everything escaped; one of another `folder` may build on those here."""
    return printable(_environment(folder).get_template(template).render(t=t, language=language, **found))


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
    environment.filters |= {"number": number, "percent": percent, "is_number": finite}
    return environment

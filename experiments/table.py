"""A comparison as lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagnosis.report.messages import Messages
from diagnosis.report.terminal import aligned, columns, wrap
from experiments.comparison import LOCALES
from experiments.summary import Comparison, cells, headings, measure

MOST_PAIRS, MOST_DIFFERENCES, LONGEST_CELL = 12, 20, 28


def screen(found: Comparison) -> str:
    """Return the lines to print: the table, what differs, the verdict, the pairs, notes."""
    messages = Messages(found["language"], LOCALES)
    title = messages("table.experiments", measure=measure(found, messages), unit=messages(found["unit"]))
    rows = [[row["label"], *cells(row, found, messages)] for row in found["experiments"]]
    parts = [
        [title, *table([messages("table.name"), *headings(found, messages)], rows)],
        _differences(found, messages),
        wrap(messages("space").join(found["verdict"])),
        _pairs(found["pairs"], messages),
        [messages("table.notes"), *(line for note in found["notes"] for line in wrap(note, "  "))]
        if found["notes"]
        else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: the first column and the last to the left, the figures between to the right."""
    return aligned([head, *rows], right=range(1, len(head) - 1))


def _differences(found: Comparison, messages: Messages) -> list[str]:
    differing = list(found["differences"].items())
    if not differing:
        return []
    rows = [
        [name, *(value if columns(value) <= LONGEST_CELL else value[: LONGEST_CELL - 1] + "…" for value in values)]
        for name, values in differing[:MOST_DIFFERENCES]
    ]
    head = [messages("page.setting"), *(f"[{k}]" for k in range(1, len(found["experiments"]) + 1))]
    if len(found["experiments"]) > 6:  # a line for each setting with all its values would be too long
        rows = [[name, ", ".join(dict.fromkeys(values))[:80]] for name, *values in rows]
        head = [messages("page.setting"), ""]
    lines = [messages("table.differences"), *table(head, rows)]
    if len(differing) > MOST_DIFFERENCES:
        lines.append("  " + messages("table.more", count=len(differing) - MOST_DIFFERENCES))
    return lines


def _pairs(pairs: Sequence[dict[str, Any]], messages: Messages) -> list[str]:
    if not pairs:
        return []
    lines = [messages("table.pairs")]
    for pair in pairs[:MOST_PAIRS]:
        text = messages("table.pair", **{key: pair[key] for key in ("worse", "better", "difference")})
        if pair["p"] is not None:
            text += messages("table.margin", margin=pair["margin"], p=pair["p"])
        lines += wrap(f"{text}{messages('page.colon')}{answer(pair, messages)}", "  ")
    if len(pairs) > MOST_PAIRS:
        lines.append("  " + messages("table.more", count=len(pairs) - MOST_PAIRS))
    return lines


def answer(pair: dict[str, Any], messages: Messages) -> str:
    """Return whether the difference is more than noise, in a word or three."""
    return messages({True: "table.yes", False: "table.no", None: "table.unknown"}[pair["differs"]])

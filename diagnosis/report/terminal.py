"""A diagnosis as a screenful of text. Chinese characters are two columns wide."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from diagnosis.report.format import bucket_name, number
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

WIDTH, BAR = 96, 30
CLOSING = "，。；：、！？）》」』%.,;:!?) "  # may not begin a line
# a Latin word or flag stays whole, unless it is longer than a line, and so does a number with its margin
WORD = re.compile(r"[!-~]{1,40}(?: ± [!-~]{1,40})?|.", re.DOTALL)


def screen(diagnosis: dict[str, Any]) -> str:
    """Return the lines to print: verdict, causes, baselines, repetition, decoding, notes."""
    texts = Messages(diagnosis["language"])
    parts = [
        _head(diagnosis, texts),
        _causes(diagnosis["causes"], texts),
        _baselines(diagnosis["ladder"], texts),
        _repetition(diagnosis["repetition"], texts),
        _decoding(diagnosis["decoding"], texts),
        figures_lines(diagnosis["figures"], texts),
        _notes(diagnosis["notes"], texts),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _head(diagnosis: dict[str, Any], texts: Messages) -> list[str]:
    subject = diagnosis["subject"]
    millions = (subject["parameters"] or 0) / 1e6
    parameters = "?" if not millions else f"{millions:,.1f} M" if millions >= 0.1 else f"{millions:.2g} M"
    facts = [texts("terminal.model", path=subject["path"], parameters=parameters, vocab=subject["vocab_size"])]
    if subject["step"] is not None:
        facts.append(texts("terminal.step", step=subject["step"], total=subject["total_steps"] or subject["step"]))
    if subject["data"]:
        facts.append(texts("terminal.text", data=subject["data"]))
    return [texts("terminal.comma").join(facts), "", *wrap(diagnosis["verdict"]["headline"])]


def _causes(causes: list[dict[str, Any]], texts: Messages) -> list[str]:
    lines = [texts("terminal.causes")] if causes else []
    for place, cause in enumerate(causes, 1):
        title = texts("terminal.cause", number=place, title=cause["title"], confidence=cause["confidence"])
        lines.append(f"  {title}")
        for sentence in (*cause["evidence"], texts("terminal.next", next=cause["next"])):
            lines += wrap(sentence, "     ")
    return lines


def _baselines(found: dict[str, Any], texts: Messages) -> list[str]:
    losses = [(row["label"], row, "-") for row in found["rungs"]]
    losses += [(texts("terminal.this_model"), found["model"], "#"), (texts("terminal.train"), found["train"], "=")]
    losses = [(label, row, mark) for label, row, mark in losses if row]
    if not losses:
        return []
    scale = BAR / max(row["nats"] for _, row, _ in losses)
    rows = [
        (label, number(row["nats"], 3), number(row["bits_per_byte"], 3), mark * max(1, round(scale * row["nats"])))
        for label, row, mark in losses
    ]
    return [texts("terminal.baselines"), *aligned(rows, right={1, 2}), *wrap(found["sentence"], "  ")]


def _repetition(rows: list[dict[str, Any]], texts: Messages) -> list[str]:
    if not rows:
        return []
    table = [["", *(texts(f"metrics.{name}") for name in METRICS)]]
    table += [[row["label"], *(_cell(row[name], name) for name in METRICS)] for row in rows]
    return [texts("terminal.repetition"), *aligned(table, right=range(1, len(table[0])))]


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "distinct_2" else f"{value:.1%}"


def _decoding(found: dict[str, Any] | None, texts: Messages) -> list[str]:
    if not found:
        return []
    best = found["grid"][found["best"]]
    sample = wrap(" ".join(f"{found['prompt']} | {best['sample']}".split()), "  > ")
    if len(sample) > 3:
        sample = [*sample[:2], f"{sample[2]} ..."]
    return [texts("terminal.decoding"), *wrap(found["sentence"], "  "), *sample]


def figures_screen(found: dict[str, Any]) -> str:
    """Return what --figures prints."""
    texts = Messages(found["language"])
    return "\n".join(figures_lines(found["figures"], texts)) + "\n"


def figures_lines(found: dict[str, Any] | None, texts: Messages) -> list[str]:
    """Return the shares of the minimal pairs with their intervals, and bits a byte by position and by length."""
    if not found:
        return []
    lines, pairs = [], found["minimal_pairs"]
    if pairs:
        rows = [
            (
                texts(f"minimal_pairs.{kind}"),
                f"{row['share']:.1%}",
                texts("terminal.interval", low=row["low"], high=row["high"], pairs=row["pairs"]),
                "#" * round(row["share"] * BAR),
            )
            for kind, row in pairs.items()
        ]
        lines += [texts("terminal.minimal_pairs"), *aligned(rows, right={1})]
    for key in ("position", "length"):
        buckets = found[f"bits_per_byte_by_{key}"]
        shown = [f"{bucket_name(bucket)}: {bucket['bits_per_byte']:.3f}" for bucket in buckets]
        if shown:
            lines += wrap(f"{texts(f'terminal.by_{key}')} {'   '.join(shown)}")
    return lines


def _notes(notes: list[str], texts: Messages) -> list[str]:
    return [texts("terminal.notes"), *(line for note in notes for line in wrap(note, "  "))] if notes else []


def wrap(text: str, indent: str = "") -> list[str]:
    """Break a text into lines of at most WIDTH columns; Chinese may be broken anywhere but before a closing mark."""
    if not any(_wide(character) for character in text):
        return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    lines, line = [], indent
    for part in WORD.findall(text):
        if columns(line) + columns(part) > WIDTH and part[0] not in CLOSING:
            lines.append(line.rstrip())
            line = indent
        line += part
    return [*lines, line]


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if _wide(character) else 1 for character in text)


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def aligned(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Return the lines of a table, the columns in `right` aligned there and the others on the left."""
    widths = [max(columns(row[k]) for row in rows) for k in range(len(rows[0]))]

    def padded(k: int, text: str) -> str:
        padding = " " * (widths[k] - columns(text))
        return padding + text if k in right else text + padding

    return [f"  {'  '.join(padded(k, cell) for k, cell in enumerate(row))}".rstrip() for row in rows]

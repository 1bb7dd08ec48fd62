"""A diagnosis as a screenful of text. Chinese characters are two columns wide."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from typing import Any

from diagnosis.report.format import bucket_name
from diagnosis.report.messages import Messages
from evaluation.repetition import METRICS

WIDTH, BAR = 96, 30
CLOSING = "，。；：、！？）》」』%.,;:!?)"  # may not begin a line
WORD = re.compile(r"[!-~]{1,40}|.", re.DOTALL)  # a Latin word or flag stays whole, unless it is longer than a line


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
    for number, cause in enumerate(causes, 1):
        title = texts("terminal.cause", number=number, title=cause["title"], confidence=cause["confidence"])
        lines.append(f"  {title}")
        for sentence in (*cause["evidence"], texts("terminal.next", next=cause["next"])):
            lines += wrap(sentence, "     ")
    return lines


def _baselines(found: dict[str, Any], texts: Messages) -> list[str]:
    rows = [(row["label"], row, "-") for row in found["rungs"]]
    rows += [(texts("terminal.this_model"), found["model"], "#"), (texts("terminal.train"), found["train"], "=")]
    rows = [(label, row, mark) for label, row, mark in rows if row and row["nats"] is not None]
    if not rows:
        return []
    most = max(row["nats"] for _, row, _ in rows)
    width = max(columns(label) for label, _, _ in rows)
    lines = [texts("terminal.baselines")]
    for label, row, mark in rows:
        bits = "" if row["bits_per_byte"] is None else f"  {row['bits_per_byte']:6.3f}"
        bar = mark * max(1, round(row["nats"] / most * BAR))
        lines.append(f"  {padded(label, width)}  {row['nats']:6.3f}{bits}  {bar}")
    return [*lines, *wrap(found["sentence"], "  ")]


def _repetition(rows: list[dict[str, Any]], texts: Messages) -> list[str]:
    if not rows:
        return []
    width = max(columns(row["label"]) for row in rows)
    head = "".join(f"  {padded(texts(f'metrics.{name}'), 10, right=True)}" for name in METRICS)
    lines = [texts("terminal.repetition"), "  " + " " * width + head]
    for row in rows:
        lines.append(
            f"  {padded(row['label'], width)}" + "".join(f"  {_cell(row[name], name):>10}" for name in METRICS)
        )
    return lines


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
        names = {kind: texts(f"minimal_pairs.{kind}") for kind in pairs}
        width = max(map(columns, names.values()))
        lines.append(texts("terminal.minimal_pairs"))
        for kind, row in pairs.items():
            bar = "#" * round(row["share"] * BAR)
            interval = texts("terminal.interval", low=row["low"], high=row["high"], pairs=row["pairs"])
            lines.append(f"  {padded(names[kind], width)}  {row['share']:6.1%}  {padded(interval, 34)}  {bar}".rstrip())
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


def padded(text: str, width: int, right: bool = False) -> str:
    """Return a text with blanks up to `width` columns, on its right or on its left."""
    padding = " " * max(0, width - columns(text))
    return padding + text if right else text + padding

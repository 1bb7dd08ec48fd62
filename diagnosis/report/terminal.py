"""A diagnosis as a screenful of text. Chinese characters are two columns wide."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from typing import Any

from diagnosis.report.messages import Words

WIDTH, BAR = 96, 30
FIGURES = ("repetition", "copying", "distinct_2", "loops")


def screen(diagnosis: dict[str, Any]) -> str:
    """The lines to print: verdict, causes, ladder, repetition, decoding, notes."""
    words = Words(diagnosis["language"])
    parts = [
        _head(diagnosis, words),
        _causes(diagnosis, words),
        _ladder(diagnosis, words),
        _repetition(diagnosis, words),
        _decoding(diagnosis, words),
        _notes(diagnosis, words),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _head(diagnosis: dict[str, Any], words: Words) -> list[str]:
    subject = diagnosis["subject"]
    millions = (subject["parameters"] or 0) / 1e6
    parameters = "?" if not millions else f"{millions:,.1f} M" if millions >= 0.1 else f"{millions:.2g} M"
    facts = [words("term_subject", path=subject["path"], parameters=parameters, vocab=subject["vocab_size"])]
    if subject["step"] is not None:
        total = subject["total_steps"]
        facts.append(words("term_step", step=subject["step"], total=total if total else subject["step"]))
    if subject["data"]:
        facts.append(words("term_text", data=subject["data"]))
    return [
        ", ".join(facts) if words.language == "en" else "，".join(facts),
        "",
        *_wrapped(diagnosis["verdict"]["headline"], ""),
    ]


def _causes(diagnosis: dict[str, Any], words: Words) -> list[str]:
    lines = [words("term_why")] if diagnosis["causes"] else []
    for number, cause in enumerate(diagnosis["causes"], 1):
        lines.append("  " + words("term_cause", number=number, title=cause["title"], confidence=cause["confidence"]))
        for sentence in cause["evidence"]:
            lines += _wrapped(sentence, "     ")
        lines += _wrapped(words("term_next", next=cause["next"]), "     ")
    return lines


def _ladder(diagnosis: dict[str, Any], words: Words) -> list[str]:
    ladder = diagnosis["ladder"]
    places = [(rung["label"], rung, "-") for rung in ladder["rungs"]]
    if ladder["model"] and ladder["model"]["nats"] is not None:
        places.append((words("term_model"), ladder["model"], "#"))
    if ladder["train"] and ladder["train"]["nats"] is not None:
        places.append((words("term_train"), ladder["train"], "="))
    if not places:
        return []
    most = max(place["nats"] for _, place, _ in places)
    label = max(_columns(name) for name, _, _ in places)
    lines = [words("term_ladder")]
    for name, place, mark in places:
        bits = "" if place["bits_per_byte"] is None else f"  {place['bits_per_byte']:6.3f}"
        bar = mark * max(1, round(place["nats"] / most * BAR))
        lines.append(f"  {_padded(name, label)}  {place['nats']:6.3f}{bits}  {bar}")
    lines[0] += (
        f" — {words('term_nats')}, {words('term_bits')}"
        if words.language == "en"
        else f"：{words('term_nats')}，{words('term_bits')}"
    )
    return [*lines, *_wrapped(ladder["sentence"], "  ")]


def _repetition(diagnosis: dict[str, Any], words: Words) -> list[str]:
    rows = diagnosis["repetition"]
    if not rows:
        return []
    label = max(_columns(row["label"]) for row in rows)
    heads = [words(f"term_col_{name}") for name in FIGURES]
    lines = [
        words("term_repetition"),
        "  " + " " * label + "".join(f"  {_padded(head, 10, right=True)}" for head in heads),
    ]
    for row in rows:
        cells = "".join(f"  {_cell(row[name], name):>10}" for name in FIGURES)
        lines.append(f"  {_padded(row['label'], label)}{cells}")
    return lines


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "distinct_2" else f"{value:.1%}"


def _decoding(diagnosis: dict[str, Any], words: Words) -> list[str]:
    found = diagnosis["decoding"]
    if not found:
        return []
    best = found["grid"][found["best"]]
    sample = " ".join(f"{found['prompt']} | {best['sample']}".split())
    return [words("term_decoding"), *_wrapped(found["sentence"], "  "), *_wrapped(sample, "  > ", lines=3)]


def _notes(diagnosis: dict[str, Any], words: Words) -> list[str]:
    if not diagnosis["notes"]:
        return []
    return [words("term_notes"), *(line for note in diagnosis["notes"] for line in _wrapped(note, "  "))]


def _wrapped(text: str, indent: str, lines: int = 0) -> list[str]:
    """Lines of at most WIDTH columns; Chinese may break anywhere, so it is cut by columns. `lines` limits them."""
    if any(_wide(character) for character in text):
        found = [indent + piece for piece in _cut(text, WIDTH - _columns(indent))]
    else:
        found = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    if lines and len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1] + " ..."]
    return found


# may not begin a line
CLOSING = "，。；：、！？）》」』%.,;:!?)"


# a Latin word or flag stays whole, unless it is longer than a line
WORD = re.compile(r"[!-~]{1,40}|.", re.DOTALL)


def _cut(text: str, width: int) -> list[str]:
    pieces, piece, columns = [], "", 0
    for part in WORD.findall(text):
        size = _columns(part)
        if columns + size > width and part[0] not in CLOSING:
            pieces.append(piece.rstrip())
            piece, columns = "", 0
        piece, columns = piece + part, columns + size
    return [*pieces, piece]


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _columns(text: str) -> int:
    return sum(2 if _wide(character) else 1 for character in text)


def _padded(text: str, width: int, right: bool = False) -> str:
    room = " " * max(0, width - _columns(text))
    return room + text if right else text + room

"""How the page prints numbers and texts; what is missing or not finite becomes a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from evaluation.run_record import finite

MISSING = "\N{EN DASH}"
_UNPRINTABLE = re.compile(
    "[^\t\n\u0020-\u007e\u00a0-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
)
_UNIT = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")
"""A unit of text: a Latin word, or one other character."""


def number(value: float | None, digits: int = 2) -> str:
    """Format with thousands separators and a fixed number of decimals."""
    return f"{value:,.{digits}f}" if finite(value) else MISSING


def percent(value: float | None) -> str:
    """Format a share as percent: one decimal below ten, none above. The sign is never alone on a line."""
    if not finite(value):
        return MISSING
    if 0 < value < 0.0005:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    digits = 1 if 0 < abs(value) < 0.0995 else 0
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def plain(value: float | None) -> str:
    """Format in the shortest sensible form: 0.5, 12, 3,400, 2e-04."""
    if not finite(value):
        return MISSING
    if value == 0 or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3g}"


def short(value: float | None) -> str:
    """Format for an axis: 0.02, 250, 1.5k, 20M, 2e-4."""
    if not finite(value):
        return MISSING
    size = abs(value)
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= power:
            return f"{value / power:.4g}{unit}"
    if 0 < size < 1e-3:
        exponent = math.floor(math.log10(size) + 1e-9)
        return f"{value / 10.0**exponent:.3g}e{exponent}"
    return f"{value:.3g}"


def amount(value: float | None, language: str) -> str:
    """Format a large count in the language's own units: 45.2 million, 4,520 万."""
    large = ((1e8, " 亿"), (1e4, " 万")) if language == "zh" else ((1e9, " billion"), (1e6, " million"))
    return _in_units(value, (*large, (1, "")))


def size(value: float | None) -> str:
    """Format bytes in decimal units."""
    return _in_units(value, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")))


def _in_units(value: float | None, units: Sequence[tuple[float, str]]) -> str:
    """Format in the largest unit that the value reaches, or as a whole number."""
    if not finite(value):
        return MISSING
    power, unit = next((pair for pair in units if abs(value) >= pair[0]), units[-1])
    scaled = value / power
    return f"{scaled:,.0f}{unit}" if power == 1 or abs(scaled) >= 1000 else f"{scaled:.3g}{unit}"


def bucket_name(bucket: dict[str, Any]) -> str:
    """Return the range of a bucket: 8-31, or 512+ for an open one."""
    return f"{bucket['start']}+" if bucket["end"] is None else f"{bucket['start']}-{bucket['end'] - 1}"


def printable(text: str) -> str:
    """Replace what is not allowed in HTML: controls, lone surrogates, overrides of the text direction."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def excerpt(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def repeated_pieces(text: str, n: int = 6) -> list[tuple[str, bool]]:
    """Split a text into pieces, each with whether it is part of `n` units in a row that occurred earlier in the text.

    Six characters are about the four tokens of the repetition metric; a name, which may come again, is shorter.
    """
    units = [match.span() for match in _UNIT.finditer(text)]
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(text)
    for k in range(len(units) - n + 1):
        gram = tuple(text[start:end] for start, end in units[k : k + n])
        if gram in seen:
            start, end = units[k][0], units[k + n - 1][1]
            repeated[start:end] = [True] * (end - start)
        seen.add(gram)
    marked = groupby(zip(text, repeated, strict=True), key=itemgetter(1))
    return [("".join(character for character, _ in piece), mark) for mark, piece in marked]

"""Draw a race as SVG: bits per byte on held-out text against training seconds, tokens, and text read.

    python -m benchmarks.race.picture runs/speed/race.json docs/race.svg

The file is the result of the race alone, or one that holds it under "race".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.curve import BOTTOM, LEFT, RIGHT, TOP, WIDTH

_PANEL = 300  # height of one
_PANELS = (("seconds", "s of training", 1.0), ("tokens", "M tokens", 1e6), ("text_bytes", "MB of text", 1e6))
_COLOURS = ("#2c3e50", "#c0392b", "#e08e0b", "#2980b9")
_LABEL_GAP = 15.0  # least distance between two labels
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Line:
    """A labelled curve of (across, bits a byte)."""

    name: str
    points: Sequence[tuple[float, float]]


def main(result: Path, output: Path) -> None:
    """Read the result, write the picture."""
    found = json.loads(result.read_text(encoding="utf-8"))
    output.write_text(svg(found.get("race", found)), encoding="utf-8")


def svg(race: dict[str, Any]) -> str:
    """Panels one above the other."""
    sides = {f"{race['peer']['name']}, {race['peer']['precision']}": race["peer"]}
    for name, side in race["ours"].items():  # one run may be both precisions
        sides[f"ours, {side['precision']}" + (", the peer's tokenizer" if name == "same_tokenizer" else "")] = side
    end = race["peer"]["curve"][-1]["bits_per_byte"]
    height = len(_PANELS) * _PANEL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, (measure, unit, scale) in enumerate(_PANELS):
        lines = [
            Line(name, [(point[measure] / scale, point["bits_per_byte"]) for point in side["curve"]])
            for name, side in sides.items()
            if side["curve"]
        ]
        parts += [f'<g transform="translate(0 {number * _PANEL})">', *_panel(lines, end, unit), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(lines: Sequence[Line], end: float, unit: str) -> list[str]:
    every = [point for line in lines for point in line.points]
    most_x = max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
    right = WIDTH - RIGHT

    def x(value: float) -> float:
        return round(LEFT + value / most_x * (right - LEFT), 1)

    def y(value: float) -> float:
        return round(_PANEL - BOTTOM - (value - low) / (high - low) * (_PANEL - BOTTOM - TOP), 1)

    parts = []
    for value in ticks(low, high):
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y(value)}" y2="{y(value)}" stroke="#eee"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, most_x):
        parts.append(
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{_PANEL - BOTTOM}" y2="{_PANEL - BOTTOM + 4}" stroke="#999"/>'
        )
        parts.append(f'<text x="{x(value)}" y="{_PANEL - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y(end)}" y2="{y(end)}" stroke="#999" stroke-dasharray="4 4"/>')
    labels = spread([y(line.points[-1][1]) for line in lines], _LABEL_GAP)
    for line, colour, label in zip(lines, _COLOURS, labels, strict=False):
        path = " ".join(f"{x(across)},{y(up)}" for across, up in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(across)}" cy="{y(up)}" r="2.5" fill="{colour}"/>' for across, up in line.points]
        last_x, last_y = line.points[-1]
        if x(last_x) < right - 1:
            parts.append(
                f'<line x1="{x(last_x)}" x2="{right + 4}" y1="{y(last_y)}" y2="{label}" stroke="{colour}" '
                'stroke-width="0.5" stroke-dasharray="2 3"/>'
            )
        parts.append(f'<text x="{right + 6}" y="{label + 4}" fill="{colour}">{escape(line.name)}: {last_y:.2f}</text>')
    parts.append(f'<text x="{right + 6}" y="{_PANEL - BOTTOM + 18}">{unit}</text>')
    parts.append(f'<text x="{LEFT + 8}" y="{TOP - 4}">bits a byte of held-out text</text>')
    return parts


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values within the bounds."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in _STEPS if factor * power >= raw)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved down as far as two of them are closer than `gap`."""
    moved, floor = list(places), -math.inf
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        floor = moved[number] = max(places[number], floor + gap)
    return moved


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.race.picture RESULT.json OUTPUT.svg")
    main(Path(sys.argv[1]), Path(sys.argv[2]))

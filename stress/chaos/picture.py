"""Curves of several runs in one picture, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 50, 40, 24, 130


@dataclass(frozen=True)
class Line:
    """A curve through `points`, in the order (across, up)."""

    name: str
    colour: str
    width: float
    points: Sequence[tuple[float, float]]


def svg(lines: Sequence[Line], title: str, across: str) -> str:
    """Later lines lie on earlier ones."""
    every = [point for line in lines for point in line.points]
    most_x, most_y = max(x for x, _ in every), max(y for _, y in every) * 1.03

    def place(point: tuple[float, float]) -> str:
        x = LEFT + point[0] / most_x * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - point[1] / most_y * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in range(int(most_y) + 1):
        y = HEIGHT - BOTTOM - value / most_y * (HEIGHT - BOTTOM - TOP)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
    for number, line in enumerate(lines):
        parts.append(
            f'<polyline points="{" ".join(map(place, line.points))}" fill="none" stroke="{line.colour}" '
            f'stroke-width="{line.width}" stroke-linejoin="round"/>'
        )
        y = TOP + 10 + 20 * number
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 10}" x2="{WIDTH - RIGHT + 30}" y1="{y}" y2="{y}" '
            f'stroke="{line.colour}" stroke-width="{line.width}"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 36}" y="{y + 4}">{line.name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">0</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{most_x:,.0f} {across}</text>')
    parts.append(f'<text x="{LEFT + 8}" y="{TOP - 8}">{title}</text></svg>')
    return "\n".join(parts) + "\n"

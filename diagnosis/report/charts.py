"""Where everything stands in a figure: scales, ticks, curves, bands and bars, as shares of the plot area.

Positions are percents of the plot area, y downwards as SVG counts; paths live in a box of 1000 x 1000 that the page
stretches over it. So one figure serves every width of the page, while its text keeps its size.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, median
from typing import TypeGuard

Point = tuple[float, float]
BOX = 1000
MAX_POINTS = 400
LABEL_GAP = 8.0
"""Percents between two labels of levels, so that neighbours do not run into each other."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A named sequence of (step, value), to be drawn in the colour of its `style`."""

    label: str
    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Line:
    """A curve in place: its path, and its dots where it has few points."""

    label: str
    style: str
    path: str
    dots: list[Point]
    smooth: str = ""
    """The path of the running median, where the curve is long and noisy."""


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value known beforehand; `label_at` is moved away from its neighbours' labels."""

    label: str
    at: float
    label_at: float


@dataclass(frozen=True)
class Chart:
    """All that a line chart draws. `cut` is the label of the value above which curves run along the edge."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    summary: list[tuple[str, str, str]] = field(default_factory=list)
    """(label, first value, last value) of each curve, for whoever cannot see it."""
    levels: list[Level] = field(default_factory=list)
    marks: list[Tick] = field(default_factory=list)
    cut: str | None = None
    log: bool = False


@dataclass(frozen=True)
class Scale:
    """Values to percents, along a line or its logarithm."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """0 at `low`, 100 at `high`; values outside are kept at the edge."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low) if high > low else 50.0


def finite(value: object) -> TypeGuard[float]:
    """A number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points_of(rows: Sequence[Sequence[float | None] | None] | None) -> list[Point]:
    """The rows of a curve that have both numbers, in the order of the steps."""
    pairs = (row for row in rows or [] if row is not None and len(row) == 2)
    return sorted((float(step), float(value)) for step, value in pairs if finite(step) and finite(value))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, base: int = 10, count: int = 5) -> list[float]:
    """Powers of `base` within [low, high], thinned to about `count`; nice ticks where there is less than two powers."""
    first, last = (math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9))
    if last - first < 1:
        return nice_ticks(low, high, count)
    stride = math.ceil((last - first + 1) / count)
    return [float(base) ** k for k in range(first, last + 1, stride)]


def thin(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points that look the same: each stretch keeps its lowest and highest, so spikes stay."""
    if len(points) <= limit:
        return points
    stretch = math.ceil(2 * len(points) / limit)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        window = range(start, min(start + stretch, len(points)))
        kept.add(min(window, key=lambda k: points[k][1]))
        kept.add(max(window, key=lambda k: points[k][1]))
    return [points[k] for k in sorted(kept)]


def spread_labels(positions: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """The positions, moved as little as it takes to stand `gap` apart, in the same order and within 0 to 100."""
    order = sorted(range(len(positions)), key=lambda k: positions[k])
    moved = list(positions)
    for before, here in pairwise(order):
        moved[here] = max(moved[here], moved[before] + gap)
    ceiling = 100.0
    for here in reversed(order):
        moved[here] = min(moved[here], ceiling)
        ceiling = moved[here] - gap
    return moved


def path_of(points: Sequence[Point]) -> str:
    """An SVG path through (percent, percent) points."""
    return "M" + "L".join(f"{x * BOX / 100:.0f} {y * BOX / 100:.0f}" for x, y in points) if points else ""


def smoothed(points: list[Point], stretches: int = 60) -> list[Point]:
    """The median of each of about `stretches` stretches; nothing where the curve is short, or smooth by itself.

    Smooth is what bends by less than one percent of the plot from point to point in the mean.
    """
    if len(points) < 2 * stretches:
        return []
    bends = [abs(a - 2 * b + c) for (_, a), (_, b), (_, c) in zip(points, points[1:], points[2:], strict=False)]
    if mean(bends) < 1.0:
        return []
    width = math.ceil(len(points) / stretches)
    windows = [points[start : start + width] for start in range(0, len(points), width)]
    return [(median(x for x, _ in window), median(y for _, y in window)) for window in windows]


def _value_scale(values: list[float], log: bool, floor: float | None, ceiling: float | None) -> Scale:
    """A scale around the values with some air, but none above a ceiling. Zeros stand at a logarithm's lower end."""
    low, high = min(values), max(values)
    if ceiling is not None:
        high = min(high, ceiling)
        low = min(low, high)
    smallest = min((value for value in values if value > 0), default=high)
    if log and low >= 0 and smallest > 0 and high / smallest > 4:
        return Scale(smallest / 1.25, high * 1.25, log=True)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low = floor if floor is not None and low >= floor else low - air
    high += air
    # An end of the axis just below the ceiling would leave the ceiling's own tick out.
    return Scale(low, ceiling if ceiling is not None and high > 0.85 * ceiling else high)


def line_chart(
    title: str,
    curves: Sequence[Curve],
    show: Callable[[float], str],
    show_step: Callable[[float], str],
    *,
    levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
    log_base: int = 10,
    floor: float | None = 0.0,
    ceiling: float | None = None,
) -> Chart | None:
    """A chart of the curves that have points, or None if none has.

    Args:
        show: a value as the y axis prints it; `show_step`: a step as the x axis prints it.
        levels: (label, value) of horizontal lines; marks: (step, label) of vertical ones.
        log: logarithmic y, where the values are positive and span a factor of 4 or more.
        floor: where the y axis starts if no value is below it; None: a little below the lowest value.
        ceiling: the axis ends here at the latest; higher values run along the edge.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    steps = [x for curve in curves for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points]
    x_scale = Scale(min(steps), max(steps))
    y_scale = _value_scale(values + [value for _, value in levels], log, floor, ceiling)
    lines = []
    for curve in curves:
        placed = [(x_scale.share(x), 100 - y_scale.share(y)) for x, y in curve.points]
        lines.append(
            Line(
                curve.label,
                curve.style,
                path_of(thin(placed)),
                placed if len(placed) <= 24 else [],
                path_of(smoothed(placed)),
            )
        )
    heights = [100 - y_scale.share(value) for _, value in levels]
    y_values = log_ticks(y_scale.low, y_scale.high, log_base) if y_scale.log else nice_ticks(y_scale.low, y_scale.high)
    return Chart(
        title=title,
        x_ticks=[Tick(x_scale.share(x), show_step(x)) for x in _step_ticks(x_scale)],
        y_ticks=[Tick(100 - y_scale.share(y), show(y)) for y in y_values],
        lines=lines,
        summary=[(c.label, show(c.points[0][1]), show(c.points[-1][1])) for c in curves],
        levels=[
            Level(label, at, label_at)
            for (label, _), at, label_at in zip(levels, heights, spread_labels(heights), strict=True)
        ],
        marks=[Tick(x_scale.share(step), label) for step, label in marks if x_scale.low <= step <= x_scale.high],
        cut=show(y_scale.high) if max(values) > y_scale.high else None,
        log=y_scale.log,
    )


def _step_ticks(scale: Scale) -> list[float]:
    """Whole steps only, and few enough for a phone."""
    return [step for step in nice_ticks(scale.low, scale.high, 4) if step == round(step)] or [scale.low]


@dataclass(frozen=True)
class Bands:
    """Shares that add up to one, stacked over time: one path a band, the topmost first, to be painted in this order."""

    title: str
    paths: list[str]
    even: list[float]
    """Heights at which the borders would run if every band were as wide as the others."""
    x_ticks: list[Tick]
    last: list[float]


def whole_rows(
    steps: Sequence[float | None], rows: Sequence[Sequence[float | None] | None]
) -> list[tuple[float, list[float]]]:
    """The steps whose row has all its numbers, and as many as the last row has."""
    width = len(rows[-1] or ()) if rows else 0
    found = []
    for step, row in zip(steps, rows, strict=False):
        numbers = [value for value in row or () if finite(value)]
        if finite(step) and numbers and len(numbers) == len(row or ()) == width:
            found.append((float(step), numbers))
    return found


def stacked_bands(
    title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], show_step: Callable[[float], str], columns: int
) -> Bands | None:
    """`rows[k]` are the shares of all bands at `steps[k]`; thinned to about `columns` of them."""
    pairs = [(step, [share / sum(row) for share in row]) for step, row in whole_rows(steps, rows) if sum(row) > 0]
    if len(pairs) < 2:
        return None
    stride = max(1, math.ceil(len(pairs) / columns))
    kept = pairs[:-1:stride] + pairs[-1:]
    scale = Scale(kept[0][0], kept[-1][0])
    count = len(kept[0][1])
    paths = []
    for band in range(count, 0, -1):
        border = [(scale.share(step), 100 - 100 * sum(row[:band])) for step, row in kept]
        paths.append(path_of([*border, (100.0, 100.0), (0.0, 100.0)]) + "Z")
    return Bands(
        title,
        paths,
        [100 - 100 * k / count for k in range(1, count)],
        [Tick(scale.share(x), show_step(x)) for x in _step_ticks(scale)],
        list(kept[-1][1]),
    )


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: left edge, width and height in percent."""

    left: float
    width: float
    height: float
    label: str


def histogram(
    edges: Sequence[float], counts: Sequence[float], show: Callable[[float], str]
) -> tuple[list[Bar], list[Tick]] | None:
    """Bars of one width, whatever the bins' (lengths are binned by powers), and ticks at some of the edges."""
    if len(edges) != len(counts) + 1 or not all(map(finite, [*edges, *counts])) or not max(counts, default=0) > 0:
        return None
    width = 100 / len(counts)
    bars = [
        Bar(k * width, width, 100 * count / max(counts), f"{show(edges[k])} - {show(edges[k + 1])}: {show(count)}")
        for k, count in enumerate(counts)
    ]
    stride = math.ceil(len(edges) / 5)
    return bars, [Tick(k * width, show(edge)) for k, edge in enumerate(edges) if k % stride == 0]


def position(value: float, edges: Sequence[float]) -> float | None:
    """Percent of a value along a histogram's bars of one width; None outside."""
    if not edges or not edges[0] <= value <= edges[-1]:
        return None
    bin_ = min(bisect_right(edges, value) - 1, len(edges) - 2)
    span = edges[bin_ + 1] - edges[bin_]
    return 100 * (bin_ + ((value - edges[bin_]) / span if span else 0)) / (len(edges) - 1)

"""The geometry of the page's figures: scales, ticks, curves, bands and bars.

Positions are percents of the plot area, y downwards as SVG counts; paths are drawn in a box of 1000 x 1000 that the
page stretches over the area. So one figure serves every width of the page, while its text keeps its size.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from diagnosis.report.format import finite, short

Point = tuple[float, float]
Show = Callable[[float], str]
BOX = 1000
MAX_POINTS, MAX_DOTS = 400, 24
LABEL_GAP = 8.0  # percents between two labels of levels, so that they do not overlap


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A named sequence of (step, value), drawn in the colour of its `style`."""

    label: str
    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Line:
    """A curve as SVG paths: the values, and their running median (`smooth`) if they are many and noisy."""

    label: str
    style: str
    path: str
    smooth: str
    dots: list[Point]
    """The points themselves, if they are few."""


@dataclass(frozen=True)
class Chart:
    """All that a line chart draws."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    summary: list[tuple[str, str, str]]
    """(label, first value, last value) of each curve, for readers who cannot see it."""
    levels: list[tuple[str, float, float]]
    """(label, height, height of the label) of horizontal lines."""
    marks: list[Tick]
    """Vertical lines."""
    cut: str | None
    """The label of the value above which curves run along the upper edge."""
    log: bool


@dataclass(frozen=True)
class Scale:
    """Maps values to percents, linearly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return 0 at `low`, 100 at `high`; values outside are kept at the edge."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low) if high > low else 50.0


def points_of(rows: Sequence[Sequence[float | None] | None] | None) -> list[Point]:
    """Return the rows of a curve that have both numbers, in the order of their steps."""
    pairs = (row for row in rows or [] if row is not None and len(row) == 2)
    return sorted((float(step), float(value)) for step, value in pairs if finite(step) and finite(value))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, base: int = 10, count: int = 5) -> list[float]:
    """Return about `count` powers of `base` within [low, high], or nice ticks if there are fewer than two."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    if last - first < 1:
        return nice_ticks(low, high, count)
    return [float(base) ** k for k in range(first, last + 1, math.ceil((last - first + 1) / count))]


def step_ticks(scale: Scale, whole: bool = True) -> list[Tick]:
    """Return ticks, at whole steps unless said otherwise, few enough for a phone."""
    ticks = nice_ticks(scale.low, scale.high, 4)
    steps = [step for step in ticks if not whole or step == round(step)] or [scale.low]
    return [Tick(scale.share(step), short(step)) for step in steps]


def thin(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return about `limit` points that look the same: each stretch keeps its lowest and highest, so spikes stay."""
    if len(points) <= limit:
        return points
    stretch = math.ceil(2 * len(points) / limit)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        window = range(start, min(start + stretch, len(points)))
        kept |= {pick(window, key=lambda k: points[k][1]) for pick in (min, max)}
    return [points[k] for k in sorted(kept)]


def smoothed(points: list[Point], stretches: int = 60) -> list[Point]:
    """Return the median of each of about `stretches` stretches; nothing if the curve is short or smooth by itself.

    A curve is smooth if it bends by less than one percent of the plot from point to point on average.
    """
    if len(points) < 2 * stretches:
        return []
    bends = [abs(a - 2 * b + c) for (_, a), (_, b), (_, c) in zip(points, points[1:], points[2:], strict=False)]
    if mean(bends) < 1.0:
        return []
    width = math.ceil(len(points) / stretches)
    windows = [points[start : start + width] for start in range(0, len(points), width)]
    return [(median(x for x, _ in window), median(y for _, y in window)) for window in windows]


def spread_labels(positions: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Return the positions moved just enough to be `gap` apart, in the same order and at most 100."""
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
    """Return an SVG path through (percent, percent) points."""
    return "M" + "L".join(f"{x * BOX / 100:.0f} {y * BOX / 100:.0f}" for x, y in points) if points else ""


def line_chart(
    title: str,
    curves: Sequence[Curve],
    show: Show,
    *,
    levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
    log_base: int = 10,
    floor: float | None = 0.0,
    ceiling: float | None = None,
    whole_steps: bool = True,
) -> Chart | None:
    """Return a chart of the curves that have points, None if none has.

    Args:
        show: formats a value for the y axis.
        levels: (label, value) of horizontal lines; marks: (step, label) of vertical ones.
        log: use a logarithmic y axis if the values are positive and span a factor of 4 or more.
        floor: where the y axis starts if no value is below it; None: a little below the lowest value.
        ceiling: the largest end of the y axis; higher values run along the edge.
        whole_steps: put the ticks of the x axis at whole numbers.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    steps = [x for curve in curves for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points]
    x_scale = Scale(min(steps), max(steps))
    y_scale = _value_scale(values + [value for _, value in levels], log, floor, ceiling)
    heights = [100 - y_scale.share(value) for _, value in levels]
    labels = [label for label, _ in levels]
    y_values = log_ticks(y_scale.low, y_scale.high, log_base) if y_scale.log else nice_ticks(y_scale.low, y_scale.high)
    return Chart(
        title=title,
        x_ticks=step_ticks(x_scale, whole_steps),
        y_ticks=[Tick(100 - y_scale.share(y), show(y)) for y in y_values],
        lines=[_line(curve, x_scale, y_scale) for curve in curves],
        summary=[(c.label, show(c.points[0][1]), show(c.points[-1][1])) for c in curves],
        levels=list(zip(labels, heights, spread_labels(heights), strict=True)),
        marks=[Tick(x_scale.share(step), label) for step, label in marks if x_scale.low <= step <= x_scale.high],
        cut=show(y_scale.high) if max(values) > y_scale.high else None,
        log=y_scale.log,
    )


def _line(curve: Curve, x_scale: Scale, y_scale: Scale) -> Line:
    placed = [(x_scale.share(x), 100 - y_scale.share(y)) for x, y in curve.points]
    dots = placed if len(placed) <= MAX_DOTS else []
    return Line(curve.label, curve.style, path_of(thin(placed)), path_of(smoothed(placed)), dots)


def _value_scale(values: list[float], log: bool, floor: float | None, ceiling: float | None) -> Scale:
    """Return a scale around the values with some margin, but not above the ceiling. A log scale draws 0 at its end."""
    low, high = min(values), max(values)
    if ceiling is not None:
        high = min(high, ceiling)
        low = min(low, high)
    smallest = min((value for value in values if value > 0), default=high)
    if log and low >= 0 and smallest > 0 and high / smallest > 4:
        return Scale(smallest / 1.25, high * 1.25, log=True)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low = floor if floor is not None and low >= floor else low - margin
    high += margin
    # an axis that ends just below the ceiling would leave the ceiling's own tick out
    return Scale(low, ceiling if ceiling is not None and high > 0.85 * ceiling else high)


@dataclass(frozen=True)
class Bands:
    """Shares that add up to one, stacked over time: one path a band, the topmost first, to be painted in this order."""

    title: str
    paths: list[str]
    even: list[float]
    """The heights of the borders between bands of equal height."""
    x_ticks: list[Tick]
    last: list[float]


def whole_rows(
    steps: Sequence[float | None], rows: Sequence[Sequence[float | None] | None]
) -> list[tuple[float, list[float]]]:
    """Return the steps whose row has all its numbers, and as many as the last row has."""
    width = len(rows[-1] or ()) if rows else 0
    found = []
    for step, row in zip(steps, rows, strict=False):
        numbers = [value for value in row or () if finite(value)]
        if finite(step) and numbers and len(numbers) == len(row or ()) == width:
            found.append((float(step), numbers))
    return found


def stacked_bands(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], columns: int) -> Bands | None:
    """Stack the shares `rows[k]` at `steps[k]`, thinned to about `columns` of them; None for fewer than two."""
    pairs = [(step, [share / sum(row) for share in row]) for step, row in whole_rows(steps, rows) if sum(row) > 0]
    if len(pairs) < 2:
        return None
    kept = pairs[: -1 : max(1, math.ceil(len(pairs) / columns))] + pairs[-1:]
    scale = Scale(kept[0][0], kept[-1][0])
    count = len(kept[0][1])
    paths = []
    for band in range(count, 0, -1):
        border = [(scale.share(step), 100 - 100 * sum(row[:band])) for step, row in kept]
        paths.append(path_of([*border, (100.0, 100.0), (0.0, 100.0)]) + "Z")
    even = [100 - 100 * k / count for k in range(1, count)]
    return Bands(title, paths, even, step_ticks(scale), list(kept[-1][1]))


def histogram(
    edges: Sequence[float], counts: Sequence[float], show: Show
) -> tuple[list[tuple[float, float, str]], list[Tick]] | None:
    """Return (left edge, height, label) of bars of equal width, whatever that of the bins, and ticks at some edges."""
    if len(edges) != len(counts) + 1 or not all(map(finite, [*edges, *counts])) or not max(counts, default=0) > 0:
        return None
    width, highest = 100 / len(counts), max(counts)
    bars = [
        (k * width, 100 * count / highest, f"{show(edges[k])} - {show(edges[k + 1])}: {show(count)}")
        for k, count in enumerate(counts)
    ]
    stride = math.ceil(len(edges) / 5)
    return bars, [Tick(k * width, show(edge)) for k, edge in enumerate(edges) if k % stride == 0]


def position(value: float, edges: Sequence[float]) -> float | None:
    """Return where a value is along a histogram's bars of equal width, in percent; None if outside."""
    if not edges or not edges[0] <= value <= edges[-1]:
        return None
    k = min(bisect_right(edges, value) - 1, len(edges) - 2)
    width = edges[k + 1] - edges[k]
    return 100 * (k + ((value - edges[k]) / width if width else 0)) / (len(edges) - 1)

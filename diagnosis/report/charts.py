"""The geometry of the page's figures: scales, ticks, curves, bands and bars.

Positions are percents of the plot area, y downwards as SVG counts; paths are drawn in a box of 1000 x 1000 that the
page stretches over the area. So one figure serves every width of the page, while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from diagnosis.report.format import short

Point = tuple[float, float]
Show = Callable[[float], str]
MAX_POINTS, MAX_DOTS = 400, 24
SMOOTH_POINTS = 60
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
    ends: tuple[str, str]
    """The first and the last value, for readers who cannot see the curve."""


@dataclass(frozen=True)
class Chart:
    """All that a line chart draws."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    levels: list[tuple[str, float, float]]
    """(label, height, height of the label) of horizontal lines."""
    marks: list[Tick]
    """Vertical lines."""
    cut: str | None
    """The label of the value above which curves run along the upper edge."""
    log: bool


@dataclass(frozen=True)
class Scale:
    """Maps values to percents, linearly or by their logarithm to the base `log`."""

    low: float
    high: float
    log: int | None = None

    def share(self, value: float) -> float:
        """Return 0 at `low`, 100 at `high`; values outside are kept at the edge."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low) if high > low else 50.0

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """Return about `count` multiples of 1, 2 or 5 times a power of ten, or powers of the base; `whole` numbers."""
        if self.log:
            first, last = math.ceil(math.log(self.low, self.log) - 1e-9), math.floor(math.log(self.high, self.log))
            if last > first:
                return [float(self.log) ** k for k in range(first, last + 1, math.ceil((last - first + 1) / count))]
        if not self.high > self.low:
            return [self.low]
        rough = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        step = max(step, 1) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def _step_ticks(scale: Scale, whole: bool = True) -> list[Tick]:
    """Return ticks few enough for a phone."""
    return [Tick(scale.share(step), short(step)) for step in scale.ticks(4, whole) or [scale.low]]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Return about `limit` points that look the same: each stretch keeps its lowest and highest, so spikes stay."""
    if len(points) <= limit:
        return list(points)
    values = [value for _, value in points]
    kept = {0, len(points) - 1}
    for stretch in np.array_split(range(len(points)), limit // 2):
        kept |= {int(pick(stretch, key=values.__getitem__)) for pick in (min, max)}
    return [points[k] for k in sorted(kept)]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the medians of SMOOTH_POINTS stretches; nothing if the curve is short or smooth by itself.

    A curve is smooth if it bends by less than one percent of the plot from point to point on average.
    """
    if len(points) < 2 * SMOOTH_POINTS or np.abs(np.diff([value for _, value in points], 2)).mean() < 1:
        return []
    return [tuple(np.median(stretch, axis=0)) for stretch in np.array_split(points, SMOOTH_POINTS)]


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


def _path(points: Sequence[Point]) -> str:
    """Return an SVG path through (percent, percent) points."""
    return "M" + "L".join(f"{round(10 * x)} {round(10 * y)}" for x, y in points) if points else ""


def line_chart(
    title: str,
    curves: Sequence[Curve],
    show: Show,
    *,
    levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[tuple[float, str]] = (),
    log: int | None = None,
    floor: float | None = 0.0,
    ceiling: float | None = None,
    whole_steps: bool = True,
) -> Chart | None:
    """Return a chart of the curves that have points, None if none has.

    Args:
        show: formats a value for the y axis.
        levels: (label, value) of horizontal lines; marks: (step, label) of vertical ones.
        log: the base of a logarithmic y axis, used if the values are positive and span a factor of 4 or more.
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
    return Chart(
        title=title,
        x_ticks=_step_ticks(x_scale, whole_steps),
        y_ticks=[Tick(100 - y_scale.share(y), show(y)) for y in y_scale.ticks()],
        lines=[_line(curve, x_scale, y_scale, show) for curve in curves],
        levels=list(zip(labels, heights, spread_labels(heights), strict=True)),
        marks=[Tick(x_scale.share(step), label) for step, label in marks if x_scale.low <= step <= x_scale.high],
        cut=show(y_scale.high) if max(values) > y_scale.high else None,
        log=bool(y_scale.log),
    )


def _line(curve: Curve, x_scale: Scale, y_scale: Scale, show: Show) -> Line:
    placed = [(x_scale.share(x), 100 - y_scale.share(y)) for x, y in curve.points]
    dots = placed if len(placed) <= MAX_DOTS else []
    ends = show(curve.points[0][1]), show(curve.points[-1][1])
    return Line(curve.label, curve.style, _path(thin(placed)), _path(smoothed(placed)), dots, ends)


def _value_scale(values: list[float], log: int | None, floor: float | None, ceiling: float | None) -> Scale:
    """Return a scale around the values with some margin, but not above the ceiling. A log scale draws 0 at its end."""
    high = min(max(values), math.inf if ceiling is None else ceiling)
    low = min(*values, high)
    smallest = min((value for value in values if value > 0), default=high)
    if log and low >= 0 and smallest > 0 and high / smallest > 4:
        return Scale(smallest / 1.25, high * 1.25, log)
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


def stacked_bands(title: str, steps: Sequence[float], rows: Sequence[Sequence[float]], columns: int) -> Bands | None:
    """Stack the shares `rows[k]` at `steps[k]`, thinned to about `columns` of them; None for fewer than two."""
    if len(rows) < 2:
        return None
    kept = sorted({*range(0, len(rows), math.ceil(len(rows) / columns)), len(rows) - 1})
    scale, count = Scale(steps[0], steps[-1]), len(rows[0])
    places = [scale.share(steps[k]) for k in kept]
    borders = 100 - 100 * np.cumsum([rows[k] for k in kept], axis=1)
    paths = [_path([*zip(places, borders[:, k], strict=True), (100, 100), (0, 100)]) + "Z" for k in range(count)]
    even = [100 - 100 * k / count for k in range(1, count)]
    return Bands(title, paths[::-1], even, _step_ticks(scale), list(rows[-1]))


def histogram(
    edges: Sequence[float], counts: Sequence[float], show: Show
) -> tuple[list[tuple[float, float, str]], list[Tick]]:
    """Return (left edge, height, label) of bars of equal width, whatever that of the bins, and ticks at some edges."""
    width, highest = 100 / len(counts), max(counts)
    bars = [
        (k * width, 100 * count / highest, f"{show(edges[k])} - {show(edges[k + 1])}: {show(count)}")
        for k, count in enumerate(counts)
    ]
    stride = math.ceil(len(edges) / 5)
    return bars, [Tick(k * width, show(edge)) for k, edge in enumerate(edges) if k % stride == 0]

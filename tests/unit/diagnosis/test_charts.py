"""Scales, ticks, thinning and the other geometry of the figures."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnosis.report.charts import (
    Curve,
    Scale,
    histogram,
    line_chart,
    smoothed,
    spread_labels,
    stacked_bands,
    thin,
)

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


def test_ticks_are_round_numbers_within_the_range():
    assert Scale(0, 10).ticks() == [0, 2, 4, 6, 8, 10]
    assert Scale(4.4, 9.1).ticks() == [5, 6, 7, 8, 9]
    assert Scale(0, 2e-4).ticks() == pytest.approx([0, 5e-5, 1e-4, 1.5e-4, 2e-4])
    assert Scale(1, 3).ticks(4, whole=True) == [1, 2, 3]
    assert Scale(0.05, 300, 10).ticks() == pytest.approx([0.1, 1, 10, 100])
    assert Scale(4000, 70000, 2).ticks() == [4096, 8192, 16384, 32768, 65536]


@given(NUMBERS, st.floats(1e-9, 1e12))
def test_ticks_are_few_and_inside(low, width):
    high = low + width
    ticks = Scale(low, high).ticks()
    assert len(ticks) <= 7
    slack = max(width * 1e-3, 4 * math.ulp(high), 4 * math.ulp(low))  # a float of 2e11 has steps of 3e-5
    assert all(low - slack <= tick <= high + slack for tick in ticks)


@given(st.lists(st.tuples(st.floats(0, 1e6), NUMBERS), max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes(points):
    points = sorted(points)
    kept = thin(points, limit=100)
    assert len(kept) <= 102
    if points:
        assert kept[0] == points[0] and kept[-1] == points[-1]
        assert max(y for _, y in kept) == max(y for _, y in points)
        assert min(y for _, y in kept) == min(y for _, y in points)


def test_a_single_spike_survives_thinning():
    points = [(float(k), 1.0) for k in range(10_000)]
    points[4321] = (4321.0, 99.0)
    assert (4321.0, 99.0) in thin(points)


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_are_spread_in_order(positions):
    moved = spread_labels(positions, gap=8)
    order = sorted(range(len(positions)), key=lambda k: positions[k])
    assert all(moved[b] - moved[a] >= 8 - 1e-9 for a, b in pairwise(order))
    assert max(moved, default=0) <= 100
    assert spread_labels([10, 50, 90]) == [10, 50, 90]


def test_scales_place_values_and_keep_strays_at_the_edge():
    assert [Scale(0, 10).share(v) for v in (0, 5, 10, 99, -1)] == [0, 50, 100, 100, 0]
    assert Scale(1, 100, log=10).share(10) == pytest.approx(50)
    assert Scale(3, 3).share(3) == 50


def test_a_chart_places_curve_levels_and_marks():
    chart = line_chart(
        "T",
        [Curve("a", [(0.0, 0.0), (100.0, 10.0)], "main"), Curve("none", [], "x")],
        str,
        levels=[("five", 5.0)],
        marks=[(50, "m"), (500, "outside")],
    )
    assert [line.label for line in chart.lines] == ["a"]
    top = 10 + 0.6
    assert chart.levels[0][1] == pytest.approx(100 - 100 * 5 / top)
    assert [(mark.at, mark.label) for mark in chart.marks] == [(50, "m")]
    assert chart.lines[0].path.startswith("M0 1000L1000 ")
    assert chart.cut is None
    assert line_chart("T", [Curve("none", [], "x")], str) is None


def test_a_diverged_curve_runs_along_the_ceiling_and_says_so():
    chart = line_chart("T", [Curve("a", [(0.0, 5.0), (1.0, 1e30)], "main")], str, ceiling=12.0, floor=None)
    assert chart.cut == "12.0"
    assert chart.lines[0].dots[-1] == (100, 0)


@pytest.mark.parametrize("points", [[(7.0, 3.0)], [(7.0, 0.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -5.0), (2.0, 1e-300)]])
@pytest.mark.parametrize("log", [None, 10])
def test_constant_and_single_values_have_a_chart(points, log):
    chart = line_chart("T", [Curve("a", points, "main")], str, log=log)
    assert all(0 <= c <= 100 for point in chart.lines[0].dots for c in point)
    assert chart.y_ticks


def test_a_logarithm_keeps_zeros_at_its_lower_end():
    chart = line_chart("T", [Curve("a", [(0.0, 0.0), (1.0, 0.01), (2.0, 1.0)], "main")], str, log=10)
    assert chart.log
    heights = [y for _, y in chart.lines[0].dots]
    assert heights[0] == 100 and 0 < heights[2] < heights[1] < 100
    assert not line_chart("T", [Curve("a", [(0.0, -1.0), (1.0, 100.0)], "main")], str, log=10).log


def test_only_noise_is_smoothed():
    calm = [(k / 10, 50 + k / 100) for k in range(1000)]
    noisy = [(k / 10, 50 + 10 * (-1) ** k) for k in range(1000)]
    assert smoothed(calm) == []
    assert 50 <= len(smoothed(noisy)) <= 70
    assert smoothed(noisy[:20]) == []


def test_bands_are_stacked_shares_with_even_borders():
    bands = stacked_bands("L", [1, 2], [[0.25, 0.25, 0.5], [1, 0, 0]], columns=10)
    assert bands.even == pytest.approx([100 - 100 / 3, 100 - 200 / 3])
    assert bands.last == [1, 0, 0]
    # All three, then the first two, then the first alone: each covers the one before from below.
    assert [path.split("L")[0] for path in bands.paths] == ["M0 0", "M0 500", "M0 750"]
    assert stacked_bands("L", [1], [[1, 1]], columns=10) is None


def test_bars_of_a_histogram_are_relative_to_the_highest():
    bars, ticks = histogram([1, 10, 100, 1000], [5, 10, 0], str)
    assert [height for _, height, _ in bars] == [50, 100, 0]
    assert ticks[0].label == "1" and ticks[-1].at == pytest.approx(100)

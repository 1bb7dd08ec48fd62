"""The rows that a loss is measured on."""

import pytest

from evaluation.rows import evaluation_rows


@pytest.mark.parametrize(
    ("total", "tokens", "expected"),
    [
        (10, 0, list(range(10))),
        (10, 10**6, list(range(10))),
        (10, 5 * 64, [0, 2, 4, 6, 8]),
        (10, 3 * 64 + 63, [0, 3, 6]),
        (10, 1, [0]),
        (0, 0, []),
        (0, 100, []),
    ],
)
def test_evaluation_rows_are_spread_over_the_split(total, tokens, expected):
    assert evaluation_rows(total, tokens, 64) == expected


@pytest.mark.parametrize("wanted", range(1, 40))
def test_evaluation_rows_are_distinct_and_inside(wanted):
    rows = evaluation_rows(37, wanted * 64, 64)
    assert len(set(rows)) == min(wanted, 37)
    assert 0 <= min(rows) <= max(rows) < 37

"""Welch's test and Holm's correction on known examples, and how often equal recipes are called different."""

import random

import pytest

from experiments.statistics import ALPHA, holm, welch


def test_welch_on_an_example_worked_by_hand():
    test = welch([1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 9.0])
    assert test is not None
    # variances of the means 5/12 and 4/3: 3.235 degrees of freedom, where 5 % of Student's t lie beyond 3.06
    assert test.difference == 4.5
    assert test.margin == pytest.approx(3.06 * (5 / 12 + 4 / 3) ** 0.5, rel=0.01)
    assert test.p == pytest.approx(0.0378, rel=0.02)


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0, 3.0]), ([1.0], [2.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_nothing_can_be_known_without_a_spread(a, b):
    assert welch(a, b) is None


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_are_called_different_in_no_more_than_one_draw_of_twenty(seeds):
    draw = random.Random(7)
    draws = 600
    called = 0
    for _ in range(draws):
        a, b = ([draw.gauss(3, 0.02) for _ in range(seeds)] for _ in range(2))
        test = welch(a, b)
        assert test is not None
        called += test.p < ALPHA
    assert called / draws <= ALPHA + 0.01


def test_a_difference_of_many_spreads_is_found():
    draw = random.Random(7)
    found = sum(
        welch([draw.gauss(3, 0.01) for _ in range(3)], [draw.gauss(3.1, 0.01) for _ in range(3)]).p < ALPHA  # type: ignore[union-attr]
        for _ in range(200)
    )
    assert found > 190

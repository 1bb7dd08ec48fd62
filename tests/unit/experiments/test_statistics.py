"""Known values of Student's t and of Holm's correction, and how often equal recipes are called different."""

import random
from statistics import mean, stdev

import pytest

from experiments.statistics import ALPHA, holm, t_quantile, t_two_sided, welch


@pytest.mark.parametrize(
    ("t", "freedom"),
    [(12.7062, 1), (4.30265, 2), (2.77645, 4), (2.22814, 10), (1.98397, 100)],  # of the tables, 5 % on both sides
)
def test_the_distribution_of_t(t, freedom):
    assert t_two_sided(t, freedom) == pytest.approx(0.05, rel=1e-4)
    assert t_quantile(0.05, freedom) == pytest.approx(t, rel=1e-4)
    assert t_two_sided(0, freedom) == pytest.approx(1)


def test_welch_on_an_example_worked_by_hand():
    a, b = [1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 9.0]
    test = welch(a, b)
    assert test is not None
    parts = stdev(a) ** 2 / 4, stdev(b) ** 2 / 3
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    assert test.difference == mean(b) - mean(a) == 4.5
    assert test.p == pytest.approx(t_two_sided(4.5 / sum(parts) ** 0.5, freedom))
    assert test.margin == pytest.approx(t_quantile(ALPHA, freedom) * sum(parts) ** 0.5)


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

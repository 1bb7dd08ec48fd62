"""The figures of repetition: known answers, and what must hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.repetition import (
    LOOP_TOKENS,
    copying_rate,
    distinct_n,
    loop_period,
    measure_repetition,
    repetition_rate,
)

texts = st.lists(st.integers(0, 5), max_size=40)


@pytest.mark.parametrize(
    ("output", "n", "share"),
    [
        ([1, 2, 3, 4, 5, 6], 4, 0.0),
        ([7] * 8, 4, 0.8),  # five 4-grams, one of them different
        ([1, 2, 1, 2, 1, 2], 2, 0.6),  # 12 21 12 21 12
        ([1, 2, 3, 4], 4, 0.0),
        ([1, 2, 3], 4, None),
        ([], 1, None),
    ],
)
def test_repetition(output, n, share):
    assert repetition_rate(output, n) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("prompt", "output", "share"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 1.0),
        ([1, 2, 3, 4, 5], [9, 1, 2, 3, 4], 0.5),  # 9123 is new
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 0.0),
        ([1, 2], [1, 2, 1, 2], 0.0),  # too short a prompt to copy from
        ([1, 2, 3, 4, 5], [1, 2, 3], None),
    ],
)
def test_copying(prompt, output, share):
    assert copying_rate(prompt, output) == share


def test_distinct_counts_over_all_outputs():
    assert distinct_n([[1, 2, 3], [1, 2, 3]]) == 0.5
    assert distinct_n([[1, 2, 3], [3, 2, 1]]) == 1.0
    assert distinct_n([[1, 1, 1, 1, 1]]) == 0.25
    assert distinct_n([[1], []]) is None
    assert distinct_n([]) is None


@pytest.mark.parametrize(
    ("output", "period"),
    [
        ([5] * 12, 1),
        ([5] * 11, None),  # below LOOP_TOKENS
        ([9, 8] + [1, 2, 3, 4] * 3, 4),
        ([1, 2, 3, 4] * 3 + [1, 2], 4),  # broken off in the middle of a round
        ([1, 2, 3, 4] * 3 + [9], None),  # it has found the way out
        ([1, 2, 3, 4] * 2, None),
        ([1, 2, 3, 4] * 2 + [1, 2, 3], None),  # eleven tokens of twelve
        ([1, 2] * 6, 2),
        (list(range(20)) * 3, 20),
        (list(range(20)) * 2, None),
        (list(range(64)), None),
        ([], None),
    ],
)
def test_loops(output, period):
    assert loop_period(output) == period


def test_a_loop_of_two_rounds_where_that_is_asked_for():
    assert loop_period(list(range(20)) * 2, repeats=2) == 20


@given(texts)
def test_shares_are_shares(output):
    for value in (repetition_rate(output), copying_rate(output[::-1], output), distinct_n([output])):
        assert value is None or 0 <= value <= 1


@given(texts)
def test_all_of_a_copy_is_copied(output):
    assert copying_rate(output, output) in (1.0, None)


@given(texts, st.integers(0, 5), st.integers(1, 3))
def test_a_new_token_behind_a_text_does_not_make_it_more_repetitive(output, n, _):
    longer, n = [*output, 99], n + 1
    if repetition_rate(output, n) is not None:
        assert repetition_rate(longer, n) <= repetition_rate(output, n)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(3, 12))
def test_what_is_repeated_at_the_end_is_found(before, unit, rounds):
    period = loop_period(before + unit * rounds)
    if len(unit) * rounds >= LOOP_TOKENS:
        assert period is not None
        assert period <= len(unit)


@given(texts)
def test_a_period_found_is_one(output):
    period = loop_period(output)
    if period is not None:
        tail = output[-max(3 * period, LOOP_TOKENS) :]
        assert all(tail[i] == tail[i + period] for i in range(len(tail) - period))


def test_measure_takes_means_over_what_has_the_figure():
    figures = measure_repetition([[1, 2, 3, 4], [1], [1]], [[1, 2, 3, 4], [7] * 13, [8]])
    assert figures.repetition == pytest.approx((0 + 0.9) / 2)
    assert figures.copying == pytest.approx((1 + 0) / 2)
    assert figures.distinct_2 == pytest.approx(4 / 15)
    assert figures.loops == pytest.approx(1 / 3)
    assert figures.outputs == 3


def test_measure_of_nothing_has_no_figures():
    figures = measure_repetition([], [])
    assert (figures.repetition, figures.copying, figures.distinct_2, figures.loops, figures.outputs) == (
        None,
        None,
        None,
        None,
        0,
    )


def test_as_many_prompts_as_outputs():
    with pytest.raises(ValueError):
        measure_repetition([[1]], [])

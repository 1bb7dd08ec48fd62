"""What the checks of the network make of their figures."""

import math

import pytest

from training.preflight.model_checks import (
    LossFigures,
    check_causality,
    check_evaluation_repeats,
    check_loss,
    check_loss_at_start,
)


@pytest.mark.parametrize(
    ("loss", "level"), [(8.76, "pass"), (8.9, "pass"), (8.2, "fail"), (12.0, "fail"), (math.nan, "fail")]
)
def test_the_loss_at_the_start(loss, level):
    assert check_loss_at_start(loss, 6400).level == level


@pytest.mark.parametrize(("leak", "level"), [(0.0, "pass"), (1e-3, "fail"), (math.nan, "fail")])
def test_leaks(leak, level):
    assert check_causality(leak).level == level


def test_a_reported_loss_that_is_another_token_s():
    figures = LossFigures(4.0, (4.0, 4.0), {0: 9.0, 1: 8.0, 2: 4.01, 3: 9.0})
    assert "the token 2 places on" in check_loss(figures, "fp32").text
    assert check_loss(LossFigures(4.0, (4.0, 4.0), {0: 9.0, 1: 4.001, 2: 8.0, 3: 9.0}), "fp32").level == "pass"


@pytest.mark.parametrize(
    ("train", "twice", "drops", "level"),
    [
        (4.0, (4.0, 4.0), False, "pass"),
        (4.0, (4.0, 4.01), False, "fail"),
        (4.0, (4.5, 4.5), False, "fail"),
        (4.0, (4.5, 4.5), True, "pass"),
        (4.0, (math.nan, math.nan), True, "fail"),
    ],
)
def test_evaluations(train, twice, drops, level):
    assert check_evaluation_repeats(LossFigures(train, twice, {1: train}), "fp32", drops_tokens=drops).level == level

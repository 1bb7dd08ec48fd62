"""What the checks of a step make of their figures."""

import math

import pytest

from training.preflight.step_checks import (
    GradientFigures,
    UpdateFigures,
    check_gradients,
    check_gradients_cleared,
    check_overfit,
    check_updates,
    check_warm_up,
)

ROUTER, EXPERTS = "model.layers.0.mlp.gate.weight", [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in (0, 1)]


@pytest.mark.parametrize(
    ("squares", "routes", "level", "words"),
    [
        ([1.0, 1.0, 1.0], [1000, 1000], "pass", "2 experts and 1 routers"),
        ([0.0, 1.0, 1.0], [1000, 1000], "fail", "gate.weight"),
        ([1.0, math.inf, 1.0], [1000, 1000], "fail", "not finite"),
        ([1.0, 1.0, 0.0], [2000, 0], "fail", "the router has collapsed"),
        ([1.0, 1.0, 0.0], [4, 0], "warn", "too few tokens"),
        ([1.0, 1.0, 0.0], [1990, 10], "fail", "experts.1.up_proj"),
    ],
)
def test_gradients(squares, routes, level, words):
    check = check_gradients(GradientFigures(dict(zip([ROUTER, *EXPERTS], squares, strict=True)), [routes]))
    assert check.level == level
    assert words in check.text + check.hint


@pytest.mark.parametrize(
    ("norms", "level"),
    [
        ([(1.0, 33.0), (1.0, 33.0)], "pass"),
        ([(1.0, 33.0), (2.0, 33.0)], "fail"),
        ([(1.0, 1.0), (1.0, 2.0)], "fail"),
        ([(math.nan, 5.0), (math.nan, 10.0)], "fail"),
        ([(math.nan, math.nan)] * 2, "warn"),
    ],
)
def test_gradients_that_are_kept(norms, level):
    assert check_gradients_cleared(norms).level == level


def test_updates_that_round_away():
    def checked(*stuck, lost=0.0, dtype="bfloat16", still=()):
        return check_updates(UpdateFigures(2, frozenset(stuck), 0.01, lost, dtype), set(still))

    assert checked(dtype="float32").level == "pass"
    assert checked("b").level == "fail"
    assert checked("b", still={"b"}).level == "pass"
    assert checked(lost=0.5).level == "fail"
    assert checked(lost=0.05).level == "warn"
    assert "fp32 master copies" in checked(lost=0.5).hint


@pytest.mark.parametrize(
    ("losses", "ratio", "level", "words"),
    [
        ([7.4, 7.0, *[6.3] * 23], 0.015, "pass", ""),  # AdamW at 2e-4
        ([6.9, 5.0, 3.0], 0.12, "pass", ""),  # Muon
        ([7.6] * 24 + [7.56], 1.5e-4, "fail", "too low"),
        ([7.6] * 24 + [7.36], 1.2e-3, "fail", "too low"),  # Muon at a hundredth
        ([5.9] * 24 + [4.0], 1.5, "fail", "too high"),
        ([7.9, 11.9, 9.0] + [8.0] * 22, 0.3, "fail", "too high"),
        ([7.4, math.nan], 0.1, "fail", "too high"),
        ([6.9] * 24 + [5.0], 0.6, "warn", "watch"),
        ([7.5], 0.1, "warn", "slow"),
        ([7.6] * 25, 0.1, "fail", "large enough"),
    ],
)
def test_one_batch_learned_by_heart(losses, ratio, level, words):
    check = check_overfit(7.6, losses, ratio, 2000)
    assert check.level == level
    assert words in check.hint


@pytest.mark.parametrize(
    ("rates", "ratio", "level"),
    [
        ([[0.0], [0.0], [0.5], [0.8], [1.0], [0.5]], 1.0, "pass"),
        ([[1.0], [0.5]], 0.01, "pass"),
        ([[0.0], [1.0], [0.5]], 0.12, "warn"),
    ],
)
def test_warm_up(rates, ratio, level):
    assert check_warm_up(rates, 1000, ratio, rise=0.0).level == level

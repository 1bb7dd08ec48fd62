"""The expected loss: the law's own arithmetic, text that is read more than once, and the best size for a budget."""

from __future__ import annotations

import math

import pytest

from model import ModelConfig, count_parameters
from training.planning.expected_loss import HALF_LIFE, FittedLaw, worth

LAW = FittedLaw([math.log(0.5), 0.0, 0.3, 0.5, 0.3], [[0.0] * 5] * 5, 0.01, 1e6, 1e7, 2.0, 0.25)


def test_the_law_of_a_million_parameters_and_tokens_is_the_sum_of_its_factors() -> None:
    assert LAW.expect(1e6, 1e6).loss == pytest.approx(0.5 + 1.0 + math.exp(0.5))


def test_the_interval_holds_what_single_runs_miss_and_what_is_unknown_of_the_constants() -> None:
    alone = LAW.expect(1e6, 1e6)
    assert alone.margin == pytest.approx(1.96 * 0.01 * alone.loss)
    floor = [[0.04, 0, 0, 0, 0], *([[0.0] * 5] * 4)]
    wider = FittedLaw(LAW.logarithms, floor, 0.0, 1e6, 1e7).expect(1e6, 1e6)
    assert wider.margin == pytest.approx(1.96 * 0.2 * 0.5, rel=1e-3)  # of the floor, 0.5, by its logarithm


def test_one_pass_is_worth_itself_and_many_no_more_than_a_limit() -> None:
    assert worth(8e6, 10e6) == 8e6
    assert worth(10e6, 10e6) == 10e6
    assert 1.9 < worth(20e6, 10e6) / 10e6 < 2.0
    assert worth(1e12, 10e6) / 10e6 == pytest.approx(1 + HALF_LIFE)


def test_the_best_size_is_that_of_the_closed_form() -> None:
    operations = 6 * 1e6 * 1e6 * 400
    ratio = (0.3 * 1.0 / (0.3 * math.exp(0.5))) ** (1 / 0.6)
    size, tokens = LAW.best_size(operations, text=1e18)
    assert size == pytest.approx(ratio * math.sqrt(400) * 1e6, rel=0.05)
    assert 6 * size * tokens == pytest.approx(operations)


def test_little_text_is_read_less_often_by_a_larger_network() -> None:
    plenty, _ = LAW.best_size(1e16, text=1e12)
    little, _ = LAW.best_size(1e16, text=1e6)
    assert little > plenty


def test_idle_experts_count_in_part() -> None:
    dense = ModelConfig(hidden_size=64, num_hidden_layers=2, use_moe=False)
    moe = ModelConfig(hidden_size=64, num_hidden_layers=2)
    assert LAW.size(dense) == count_parameters(dense)[0]
    total, active = count_parameters(moe)
    assert LAW.size(moe) == pytest.approx(active + 0.25 * (total - active))


def test_the_shipped_law_knows_its_largest_run() -> None:
    law = FittedLaw.load()
    assert 1 < law.adamw_tokens < 20 and 0 <= law.idle_share <= 1
    found = law.expect(law.largest_parameters, law.largest_tokens)
    assert 1.5 < found.loss < 2.2 and found.margin < 0.05
    assert law.expect(45e6, 7e8).margin > found.margin

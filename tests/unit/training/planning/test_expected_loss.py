"""The expected loss: the law's own arithmetic, text that is read more than once, and the best size for a budget."""

from __future__ import annotations

import math

import pytest

from training.planning.expected_loss import FAR_MISS, HALF_LIFE, FittedForm, FittedLaw, best_size, worth

NOTHING = [[0.0] * 5] * 5
COUPLED = FittedForm(coupled=True, logarithms=[math.log(0.5), 0.0, 0.1, 0.5, 0.2], covariance=NOTHING, misfit=0.01)
SUM = FittedForm(coupled=False, logarithms=[math.log(0.5), 0.0, 0.3, 0.5, 0.3], covariance=NOTHING, misfit=0.01)
LAW = FittedLaw(forms=(COUPLED, SUM), largest_parameters=1e6, largest_compute=1e13, adamw_tokens=2.0)


def test_at_a_million_parameters_and_tokens_the_factors_alone_count() -> None:
    assert SUM.expect(1e6, 1e6).loss == pytest.approx(0.5 + 1.0 + math.exp(0.5))
    assert COUPLED.expect(1e6, 1e6).loss == pytest.approx(0.5 + (1.0 + math.exp(0.5) ** 5) ** 0.2)


def test_where_either_is_plentiful_the_other_decides() -> None:
    assert COUPLED.law()(1e6, 1e20) == pytest.approx(0.5 + 1.0)
    assert COUPLED.law()(1e60, 1e6) == pytest.approx(0.5 + math.exp(0.5))


def test_the_interval_holds_single_runs_the_constants_and_how_far_the_forms_are_apart() -> None:
    alone = SUM.expect(1e6, 1e6)
    assert alone.margin == pytest.approx(1.96 * 0.01 * alone.loss)
    floor = [[0.04, 0, 0, 0, 0], *([[0.0] * 5] * 4)]
    wider = SUM.model_copy(update={"covariance": floor, "misfit": 0.0}).expect(1e6, 1e6)
    assert wider.margin == pytest.approx(1.96 * 0.2 * 0.5, rel=1e-3)  # of the floor, 0.5, by its logarithm
    both, first = LAW.expect(5e5, 1e7), COUPLED.expect(5e5, 1e7)
    apart = SUM.expect(5e5, 1e7).loss - first.loss
    assert both.loss == first.loss and both.margin == pytest.approx(math.hypot(first.margin, apart))


def test_beyond_the_largest_run_the_interval_widens_with_the_compute() -> None:
    one_more, three_more = (LAW.expect(1e6, 1e7 * math.exp(factor)) for factor in (1, 3))
    apart = [
        abs(SUM.law()(1e6, 1e7 * math.exp(factor)) - COUPLED.law()(1e6, 1e7 * math.exp(factor))) for factor in (1, 3)
    ]
    alone = [1.96 * 0.01 * found.loss for found in (one_more, three_more)]
    for found, beside, own, factor in zip((one_more, three_more), apart, alone, (1, 3), strict=True):
        assert found.margin == pytest.approx(math.hypot(own, beside, factor * FAR_MISS * found.loss))


def test_one_pass_is_worth_itself_and_many_no_more_than_a_limit() -> None:
    assert worth(8e6, 10e6) == 8e6
    assert worth(10e6, 10e6) == 10e6
    assert 1.9 < worth(20e6, 10e6) / 10e6 < 2.0
    assert worth(1e12, 10e6) / 10e6 == pytest.approx(1 + HALF_LIFE)


def test_compute_is_spent_on_twenty_tokens_a_parameter() -> None:
    size, text_is_short = best_size(1e17, text=1e12)
    assert 6 * size * 20 * size == pytest.approx(1e17) and not text_is_short


def test_little_text_read_four_times_bounds_the_size() -> None:
    size, text_is_short = best_size(1e17, text=1e6)
    assert 20 * size == pytest.approx(4e6) and text_is_short


def test_the_shipped_law_knows_its_largest_run() -> None:
    law = FittedLaw.load()
    assert 1 < law.adamw_tokens < 20
    found = law.expect(law.largest_parameters, law.largest_compute / law.largest_parameters)
    assert 1.5 < found.loss < 2.2 and found.margin < 0.1
    assert law.expect(45e6, 7e8).margin > found.margin


def test_adamw_needs_more_tokens_and_is_known_no_better_than_muon() -> None:
    muon, fewer = LAW.expect(2e6, 1e8), LAW.expect(2e6, 5e7)
    adamw = LAW.expect_adamw(2e6, 1e8)
    assert adamw.loss == fewer.loss > muon.loss and adamw.margin == max(fewer.margin, muon.margin)

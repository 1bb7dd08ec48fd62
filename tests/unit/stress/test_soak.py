"""The arithmetic of benchmarks/soak: slopes, their intervals, shares and verdicts."""

from __future__ import annotations

import os

import numpy as np
import pytest

from stress.chaos.session import Process
from stress.soak import Sample, Slope, judge, look, saving_share, slope, table


def series(an_hour, noise=1.0, hours=0.7, seed=0):
    seconds = np.arange(0, hours * 3600, 10)
    values = 800 + an_hour * seconds / 3600 + noise * np.random.default_rng(seed).standard_normal(len(seconds))
    return seconds, values


@pytest.mark.parametrize("an_hour", [-50, 0, 30, 400])
def test_a_slope_lies_in_its_interval(an_hour):
    found = slope(*series(an_hour))
    assert found.value == pytest.approx(an_hour, abs=2)
    assert found.low < found.value < found.high
    assert found.low - 1 < an_hour < found.high + 1


def test_noise_alone_is_not_growth():
    found = slope(*series(0, noise=40))
    assert found.low < 0 < found.high
    assert not found.above(0)


def test_the_interval_widens_with_the_noise():
    narrow, wide = slope(*series(30, noise=1)), slope(*series(30, noise=20))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_growth_must_be_above_the_limit_and_sure():
    assert Slope(30, 10, 50).above(20)
    assert not Slope(30, -10, 70).above(20)
    assert not Slope(15, 10, 20).above(20)


def test_too_few_samples_for_a_slope():
    with pytest.raises(ValueError, match="2 samples are too few"):
        slope([0, 10], [1, 2])


def test_the_share_of_saving():
    output = (
        "step 25/100 ...\n  saved runs/a/checkpoints/step-00000025 (14.6 MB in 0.3 s)\n"
        "  saved runs/a/checkpoints/step-00000050 (0.5 s)\n  NOT SAVED: disk full\n"
    )
    assert saving_share(output, 40.0) == (2, pytest.approx(0.4), pytest.approx(0.02))
    assert saving_share("", 40.0) == (0, 0.0, 0.0)


def samples(an_hour):
    seconds, values = series(an_hour)
    return [
        Sample(s, role, v, v / 2, 30, 12) for s, v in zip(seconds, values, strict=True) for role in ("rank0", "other")
    ]


def test_a_leak_and_a_fall_in_speed_are_judged():
    flat = judge(samples(0), [1000.0] * 30, 300)
    assert all(verdict.good for verdict in flat)
    assert [verdict.what for verdict in flat][:2] == ["rank0, rss", "rank0, anonymous"]
    assert not [verdict.what for verdict in flat if "other" in verdict.what]
    leaking = {verdict.what: verdict.good for verdict in judge(samples(100), [1000.0] * 20 + [800.0] * 10, 300)}
    assert not leaking["rank0, rss"]
    assert not leaking["rank0, anonymous"]
    assert leaking["rank0, files"]
    assert not leaking["tokens a second, first and last third"]
    assert "**too much**" in table(judge(samples(100), [1000.0] * 30, 300))


def test_a_look_at_this_very_process():
    sample = look(Process(os.getpid(), "rank0"), 1.25)
    assert 1 < sample.anonymous <= sample.rss
    assert sample.files >= 3
    assert sample.threads >= 1
    assert look(Process(2**22 + 5, "rank0"), 0) is None

"""Every key of DeepSpeed's JSON that train.py lets through really takes a step, on two processes."""

import math

import pytest
from configurations import CONFIGURATIONS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_takes_steps_that_can_be_saved(engine_results, name):
    result = engine_results(2, f"keys: {name}")
    assert result["lines"][0]["loss"] == pytest.approx(math.log(128), abs=0.15)
    assert all(math.isfinite(line["loss"]) for line in result["lines"])
    norms = [line["grad_norm"] for line in result["lines"]]
    # without ZeRO in fp32, or where the file says so, DeepSpeed has no norm
    assert all(norm is None or 0 < norm < 100 for norm in norms)
    assert result["exported"] == (1 + 2 * 11 + 1 if CONFIGURATIONS[name].dense else 1 + 2 * (9 + 3 * 4) + 1)
    assert result["kept"] > 0


def test_the_profiler_writes_its_report(engine_results):
    engine_results(2, "keys: what is printed or changes nothing")
    report = (engine_results.folder / "profile.txt").read_text()
    assert "DeepSpeed Flops Profiler" in report and "fwd latency" in report

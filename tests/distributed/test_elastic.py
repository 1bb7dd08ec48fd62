"""A checkpoint continues the training it was taken from, on as many processes, on fewer and on more."""

import json
from pathlib import Path

import pytest
from worker_checkpoint import CASES

pytestmark = pytest.mark.slow
WORKER = Path(__file__).resolve().parents[1] / "workers" / "worker_checkpoint.py"
FP32 = [name for name in CASES if "fp32" in name]
# Muon's iteration runs in bf16 where the processor has it: a sum in another order, a last bit of fp32, may round its
# update by one bit of bf16, on some processors more often than on others
EXACT = [name for name in FP32 if "muon" not in name]
ELSEWHERE = [(processes, name) for processes in (1, 4) for name in CASES]


@pytest.fixture(scope="session")
def found(tmp_path_factory, processes_in):
    """What the worker found, by number of processes: written on 2, then read on 1 and on 4."""
    folder, results = tmp_path_factory.mktemp("elastic"), {}
    for processes in (2, 1, 4):
        done = processes_in(folder).ranks(processes, [WORKER, folder], PYTHONPATH=WORKER.parents[2])
        assert done.status == 0, done.output
        results[processes] = json.loads((folder / f"{processes}.json").read_text(encoding="utf-8"))
    return results


def case(found, processes, name):
    result = found[processes][name]
    assert "failed" not in result, result["failed"]
    return result


@pytest.mark.parametrize("name", CASES)
def test_on_as_many_processes_it_is_bit_for_bit_the_uninterrupted_one(found, name):
    result = case(found, 2, name)
    assert len(result["lines"]) == 8
    assert result["lines"][4]["loss"] != result["lines"][0]["loss"]
    assert set(result["apart"].values()) == {0.0}


@pytest.mark.parametrize(("processes", "name"), ELSEWHERE)
def test_on_another_number_the_weights_are_those_saved(found, processes, name):
    for result in case(found, processes, name).values():
        assert set(result["restored"].values()) == {0.0}


@pytest.mark.parametrize(("processes", "name"), ELSEWHERE)
def test_on_another_number_the_curve_goes_on_within_rounding(found, processes, name):
    """The optimizer's states count: without them the losses after two steps differ by a hundredth."""
    uninterrupted = case(found, 2, name)["lines"][4:]
    for result in case(found, processes, name).values():
        # DeepSpeed's norm of fp32 gradients beside bf16 weights is another on every number of processes
        figures = [("loss", 1e-6, 3e-4), ("grad_norm", 1e-5, 3e-2)][: 1 if "wide" in name else 2]
        for figure, exact, rounded in figures:
            expected = [line[figure] for line in uninterrupted]
            assert [line[figure] for line in result["lines"]] == (
                expected if None in expected else pytest.approx(expected, rel=exact if name in EXACT else rounded)
            )
        assert [set(line["lr"]) for line in result["lines"]] == [set(line["lr"]) for line in uninterrupted]
        assert [line["scale"] for line in result["lines"]] == [line["scale"] for line in uninterrupted]


@pytest.mark.parametrize(("processes", "name"), [(processes, name) for processes in (1, 4) for name in FP32])
def test_in_fp32_it_ends_with_the_same_weights(found, processes, name):
    for result in case(found, processes, name).values():
        assert max(result["apart"].values()) < (1e-6 if name in EXACT else 5e-4)


def test_experts_were_split_and_brought_together(found):
    assert set(found[4]["fp32 stage 2"]) == {"ep 1", "ep 4"}
    assert set(found[1]["fp32 stage 2 split"]) == {"ep 1"}

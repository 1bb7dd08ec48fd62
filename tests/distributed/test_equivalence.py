"""The same training whichever way it is spread: over processes, over experts' places, over accumulated micro-batches.

worker_engine.py trains; every step of it is clipped, and in fp32.
"""

import pytest
import torch

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5


def figures(result, name):
    return [line[name] for line in result["lines"]]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    apart = {name: ((one[name] - other[name]).norm() / other[name].norm()).item() for name in one}
    assert max(apart.values()) < TOLERANCE, max(apart.items(), key=lambda item: item[1])


def assert_same_training(one, other, names):
    for name in names:
        assert figures(one, name) == pytest.approx(figures(other, name), rel=TOLERANCE), name


@pytest.mark.parametrize(
    ("on_two", "file", "on_one"),
    [("dense", "dense", "dense"), ("experts", "experts", "experts"), ("experts split", "split", "experts")],
)
def test_two_processes_train_as_one(engine_results, on_two, file, on_one):
    two, one = engine_results(2, on_two), engine_results(1, on_one)
    assert_same_training(two, one, ("loss", "balance", "grad_norm"))
    assert_same_weights(engine_results.weights(2, on_two, file), engine_results.weights(1, on_one, on_one))


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_four_micro_batches_of_8_are_one_of_32(engine_results, kind):
    four, one = (engine_results(1, f"{kind} {accumulation}") for accumulation in (4, 1))
    assert_same_training(four, one, ("loss", "grad_norm"))
    assert_same_weights(*(engine_results.weights(1, f"{kind} {number}", f"{kind}-{number}") for number in (4, 1)))


def test_answers_count_alike_however_they_are_spread(engine_results):
    """Rows have from 2 to 33 targets; a mean of the micro-batches' means would differ by tens of per cent."""
    plain = engine_results(1, "plain answers")
    whole, four, two = engine_results(1, "answers 1"), engine_results(1, "answers 4"), engine_results(2, "answers 2")
    weights = engine_results.weights(1, "plain answers", "plain-answers")
    for spread, processes, file in ((whole, 1, "answers-1"), (four, 1, "answers-4"), (two, 2, "answers-2")):
        assert_same_training(spread, plain, ("loss", "grad_norm"))
        assert_same_weights(engine_results.weights(processes, file.replace("-", " "), file), weights)
    assert min(figures(plain, "grad_norm")) > 0.2  # so the limit counts


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_deepspeed_trains_as_twenty_lines_of_pytorch_do(engine_results, kind):
    ours, plain = engine_results(1, f"{kind} 1"), engine_results(1, f"plain {kind}")
    assert_same_training(ours, plain, ("loss", "grad_norm"))
    assert min(figures(plain, "grad_norm")) > 0.2  # so the limit counts
    assert_same_weights(
        engine_results.weights(1, f"{kind} 1", f"{kind}-1"),
        engine_results.weights(1, f"plain {kind}", f"plain-{kind == 'experts'}"),
    )


@pytest.mark.parametrize("scenario", ["experts", "experts split"])
def test_every_weight_is_trained_routers_and_all_experts_included(engine_results, scenario):
    moved = engine_results(2, scenario)["moved"]
    assert sum(name.endswith("mlp.gate.weight") for name in moved) == 2
    assert sum(".mlp.experts." in name for name in moved) == 2 * 4 * 3
    # 6 steps at 2e-3, each of about that size for every weight
    assert min(moved.values()) > 2e-3, min(moved.items(), key=lambda item: item[1])


def test_experts_stay_different(engine_results):
    weights = engine_results.weights(2, "experts split", "split")
    first = [weights[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] for expert in range(4)]
    assert min((first[i] - first[j]).abs().mean().item() for i in range(4) for j in range(i)) > 1e-3


@pytest.mark.parametrize("rows", ["1", "5", "8"])
@pytest.mark.parametrize(("processes", "scenario"), [(1, "evaluation"), (2, "evaluation"), (2, "evaluation split")])
def test_evaluation_is_that_of_the_saved_form_of_the_model(engine_results, processes, scenario, rows):
    result = engine_results(processes, scenario)["results"][rows]
    assert result["loss"] == pytest.approx(result["expected"], rel=1e-6)
    assert result["tokens"] == int(rows) * 32
    assert result["bits_per_byte"] == pytest.approx(result["expected"] / torch.log(torch.tensor(2.0)).item() / 2)


def test_evaluation_leaves_the_engine_training(engine_results):
    assert engine_results(2, "evaluation split")["training_mode"]

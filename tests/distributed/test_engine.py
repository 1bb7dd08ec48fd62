"""The DeepSpeed engine: its rates, its loss scale, its parameter groups, and that it learns and continues."""

from pathlib import Path

import pytest
import torch
from torch import nn

from model import CausalLM, ModelConfig
from model.moe import DeepSpeedMoE
from training.engine.build import parameter_groups

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
}
OVERFLOWS = ["overflow dense", "overflow experts", "overflow split"]
CONTINUED = ["continued t4x2", "continued t4x2_ep2", "continued t4x2_fast", "continued ampere_x2"]


# --- parameter groups -------------------------------------------------------------------------------------------------


def named_groups(model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(group, [names[parameter] for parameter in group["params"]]) for group in parameter_groups(model)]


@pytest.mark.parametrize("use_moe", [True, False])
def test_every_parameter_is_in_one_group(use_moe):
    model = CausalLM(ModelConfig(**SMALL, use_moe=use_moe), DeepSpeedMoE)
    grouped = [name for _, names in named_groups(model) for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("use_moe", [True, False])
def test_norms_and_embeddings_do_not_decay(use_moe):
    model = CausalLM(ModelConfig(**SMALL, use_moe=use_moe), DeepSpeedMoE)
    groups = named_groups(model)
    free = {name for group, names in groups if group.get("weight_decay") == 0 for name in names}
    assert free == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}
    assert all("weight_decay" not in group for group, names in groups if not free & set(names))


def test_biases_do_not_decay():
    groups = named_groups(nn.Linear(2, 3))
    assert [names for group, names in groups if group.get("weight_decay") == 0] == [["bias"]]


def test_experts_are_marked_and_nothing_else_is():
    model = CausalLM(ModelConfig(**SMALL), DeepSpeedMoE)
    marked = [name for group, names in named_groups(model) if group.get("moe") for name in names]
    assert sorted(marked) == sorted(name for name, _ in model.named_parameters() if "deepspeed_experts" in name)
    assert len(marked) == 4 * 3


# --- what a real engine does (worker_engine.py) -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_engine_uses_the_rates_that_we_say(engine_results):
    result = engine_results(1, "curve")
    for used, said in zip(result["used"], result["said"], strict=True):
        assert used == pytest.approx([said] * 2, rel=1e-12)
    assert max(result["said"]) == pytest.approx(result["peak"], rel=0.02)
    assert result["said"][-1] == pytest.approx(result["peak"] / 10)  # the floor, after the end


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_one_batch_can_be_learned_by_heart(engine_results, kind):
    losses = engine_results(1, f"overfit {kind}")["losses"]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(128.0)).item(), abs=0.15)
    assert losses[-1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("scenario", OVERFLOWS)
def test_an_overflow_skips_the_step_and_halves_the_scale(engine_results, scenario):
    result = engine_results(2, scenario)
    first, second = result["lines"][:2]
    assert (first["scale"], second["scale"]) == (2.0**24, 2.0**23)
    assert first["skipped"] == 1
    assert first["grad_norm"] == float("inf")
    assert set(result["moved_by_first"].values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", OVERFLOWS)
def test_each_overflow_is_counted_and_the_rest_trains(engine_results, scenario):
    result = engine_results(2, scenario)
    lines = result["lines"]
    scales = [*(line["scale"] for line in lines), result["final_scale"]]
    for number, line in enumerate(lines):
        skipped = line["skipped"] - (lines[number - 1]["skipped"] if number else 0)
        assert scales[number + 1] == scales[number] / 2**skipped
        assert (line["grad_norm"] == float("inf")) == bool(skipped)
    assert lines[-1]["skipped"] < len(lines) / 2
    assert result["global_steps"] == len(lines)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert min(result["moved_in_all"].values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", OVERFLOWS)
def test_the_schedule_waits_for_an_overflow(engine_results, scenario):
    lines = engine_results(2, scenario)["lines"]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line["skipped"] > before["skipped"]:
            assert after["lr"] == line["lr"]
    assert len({line["lr"][0] for line in lines}) > 2


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t4x2_fast", "cpu_x2"])
def test_muon_gets_the_matrices_and_adam_the_rest_with_the_routers(engine_results, name):
    result = engine_results(2, name)
    assert result["optimizer"] == "Muon"
    by_kind = {
        muon: {weight for group in result["groups"] if group["muon"] is muon for weight in group["weights"]}
        for muon in (True, False)
    }
    left = {
        weight
        for weight in result["moved"]
        if "norm" in weight or "embed" in weight or weight.endswith("mlp.gate.weight")
    }
    assert by_kind[False] == left
    assert by_kind[True] == set(result["moved"]) - left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t4x2_fast", "cpu_x2"])
def test_the_routers_train_under_muon(engine_results, name):
    moved = engine_results(2, name)["moved"]
    assert all(moved[f"model.layers.{layer}.mlp.gate.weight"] > 1e-3 for layer in (0, 1))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scenario", CONTINUED)
def test_a_checkpoint_gives_back_the_weights(engine_results, scenario):
    assert set(engine_results(2, scenario)["restored"].values()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", CONTINUED)
def test_a_continued_training_is_the_uninterrupted_one_bit_for_bit(engine_results, scenario):
    result = engine_results(2, scenario)
    assert result["again"] == result["lines"]  # losses, gradient norms, rates and loss scales
    assert set(result["apart"].values()) == {0.0}
    assert len(result["lines"]) == 4


@pytest.mark.slow
def test_a_checkpoint_is_whole_and_named_as_the_latest(engine_results):
    result = engine_results(2, "continued t4x2")
    assert "step-00000004" in result["files"]
    assert not [name for name in result["files"] if "partial" in name]
    folder = Path(engine_results.folder) / "2-t4x2-1"
    assert (folder / "latest").read_text() == "step-00000004\n"
    assert result["state"]["step"] == 4

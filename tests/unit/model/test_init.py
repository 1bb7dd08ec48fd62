"""The first step of training starts from knowing nothing: ln(vocabulary) nats."""

from __future__ import annotations

import math

import pytest
import torch

from model import CausalLM, ModelConfig
from model.init import init_weights


def new_model(seed: int = 0, **changes) -> CausalLM:
    config = ModelConfig(**{"num_hidden_layers": 4, "vocab_size": 1000, **changes})
    model = CausalLM(config)
    init_weights(model, config, seed)
    return model


@pytest.mark.parametrize("use_moe", [False, True])
@pytest.mark.parametrize("width", [64, 256, 1024])
@torch.no_grad()
def test_the_loss_at_step_0(width, use_moe):
    model = new_model(
        hidden_size=width,
        num_hidden_layers=2,
        intermediate_size=2 * width,
        moe_intermediate_size=width,
        use_moe=use_moe,
    )
    ids = torch.randint(3, 1000, (2, 65), generator=torch.Generator().manual_seed(0))
    assert abs(float(model(ids[:, :-1], ids[:, 1:]).lm) - math.log(1000)) < 0.15
    # what is sure of echoing its last token would pass 0.15 only by a large vocabulary
    echo = model.logits(ids).softmax(-1).gather(-1, ids[..., None])
    assert echo.mean() < 0.1


def test_experts_start_different_and_so_do_layers():
    model = new_model(hidden_size=64)
    layer = model.model.layers[0].mlp
    drawn = [expert.gate_proj.weight for expert in layer.experts]
    drawn += [model.model.layers[1].mlp.experts[0].gate_proj.weight, layer.experts[0].up_proj.weight]
    correlation = torch.corrcoef(torch.stack([weight.detach().flatten() for weight in drawn]))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.05


def test_a_seed_decides_the_weights():
    first, again, other = (dict(new_model(seed, hidden_size=64).named_parameters()) for seed in (3, 3, 4))
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert weight.ndim == 1 or not torch.equal(weight, other[name])


def test_spreads_are_those_of_the_table():
    model = new_model(hidden_size=512, num_hidden_layers=2)
    layer = model.model.layers[1]
    expected = {
        model.model.embed_tokens: 4 / 512,
        layer.self_attn.q_proj: 0.02,
        layer.mlp.gate: 0.02,
        layer.mlp.experts[2].up_proj: 0.02,
        layer.self_attn.o_proj: 0.02 / 2,
        layer.mlp.experts[2].down_proj: 0.02 / 2,
    }
    for module, std in expected.items():
        assert abs(module.weight.std().item() - std) < 0.05 * std
    assert torch.equal(layer.self_attn.q_norm.weight, torch.ones(64))

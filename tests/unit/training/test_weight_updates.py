"""The sample of weights that a step moves: known changes, a plain optimizer; real engines are in test_preflight.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.monitoring.weight_updates import WeightSample


@pytest.fixture
def engine():
    """The part of a DeepSpeed engine that is looked at: a module and the optimizer that steps its parameters."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 100), nn.LayerNorm(100))
    return SimpleNamespace(module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), global_rank=0)


def test_nothing_changed(engine):
    sample = WeightSample(engine)
    assert sample.compare() == (1.0, 0.0)


@torch.no_grad()
def test_a_known_change(engine):
    sample = WeightSample(engine, per_tensor=10**9)
    engine.module[0].weight.mul_(1.01)  # the only matrix; 3 x 100 weights stay
    unchanged, ratio = sample.compare()
    assert ratio == pytest.approx(0.01, rel=1e-4)
    assert unchanged == pytest.approx(300 / 6700)


@torch.no_grad()
def test_the_sample_is_spread_over_columns_and_rows(engine):
    sample = WeightSample(engine, per_tensor=100)
    engine.module[0].weight[:50].add_(1)  # half of the rows
    engine.module[0].weight[50:, :32].add_(1)  # and half of the columns below
    assert sample.compare()[0] == pytest.approx((25 + 300) / 400, abs=0.03)


@torch.no_grad()
def test_updates_below_half_a_unit_in_the_last_place_are_seen_to_be_lost(engine):
    engine.module.to(torch.bfloat16)
    engine.module[0].weight.fill_(1.0)
    sample = WeightSample(engine, per_tensor=10**9)
    engine.module[0].weight.add_(1e-3)
    assert sample.compare()[0] == 1.0

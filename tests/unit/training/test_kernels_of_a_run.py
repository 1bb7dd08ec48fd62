"""Which kernels a run computes with: agreed between ranks, kept when it continues."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from model import ModelConfig
from training.checkpointing.run_state import RunState
from training.engine import kernels


@dataclass(frozen=True)
class Context:
    options: Any
    device: Any
    console: Any
    config: ModelConfig = field(default_factory=ModelConfig)
    resolved: Any = field(default_factory=lambda: SimpleNamespace(micro_batch=2, precision="fp16"))
    kernels: tuple[str, ...] = ()


@pytest.fixture
def said():
    return []


@pytest.fixture
def context(said):
    console = SimpleNamespace(say=said.append)
    return Context(SimpleNamespace(kernels="auto", max_seq_len=16), SimpleNamespace(kind="cuda"), console)


@pytest.fixture
def ranks(monkeypatch):
    """What the check finds here, and on the other rank."""
    found = SimpleNamespace(here=(["add_norm", "combine"], []), there=(["add_norm", "combine"], []), asked=[])

    def choose(_config, tokens, _device, _dtype, *, earlier):
        found.asked.append((tokens, earlier))
        return found.here

    monkeypatch.setattr(kernels, "choose", choose)
    monkeypatch.setattr(kernels, "gather_from_ranks", lambda mine: [mine, found.there])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    return found


def test_all_ranks_take_what_each_of_them_can(context, ranks, said):
    ranks.there = ["combine"], ["fused kernel add_norm left out: it is slower"]
    assert kernels.with_kernels(context, None).kernels == ("combine",)
    assert said == ["fused kernels: combine", "  fused kernel add_norm left out: it is slower"]
    assert ranks.asked == [(32, None)]


@pytest.fixture
def state():
    return RunState(kernels=["combine"])


def test_a_continued_run_asks_for_the_kernels_of_its_checkpoint(context, ranks, said, state):
    ranks.here = ranks.there = (["combine"], [])
    assert kernels.with_kernels(context, state).kernels == ("combine",)
    assert ranks.asked == [(32, ["combine"])]
    assert said == ["fused kernels: combine"]


def test_a_checkpoint_of_an_earlier_version_was_computed_with_none():
    assert RunState.model_validate({"step": 3}).kernels == []


def test_a_run_that_loses_a_kernel_is_warned(context, ranks, said, state):
    ranks.here = [], ["fused kernel combine left out: it differs"]
    assert kernels.with_kernels(context, state).kernels == ()
    assert said[-1].endswith("with fused kernels for combine: its bits will differ")
    assert state.kernels == []


@pytest.mark.parametrize(("flag", "kind"), [("plain", "cuda"), ("auto", "cpu")])
def test_plain_is_plain_and_so_is_a_cpu(context, ranks, said, state, flag, kind):
    options = SimpleNamespace(kernels=flag, max_seq_len=16)
    context = replace(context, options=options, device=SimpleNamespace(kind=kind))
    assert kernels.with_kernels(context, None).kernels == ()
    assert not said and not ranks.asked
    kernels.with_kernels(context, state)
    assert said[0].startswith("WARNING")

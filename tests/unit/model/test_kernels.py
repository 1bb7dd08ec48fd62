"""The fused kernels, run by Triton's interpreter on the CPU, against plain PyTorch in fp32: both ways, odd sizes."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import CausalLM
from model.kernels import NAMES, Kernels
from model.kernels.check import ODD, choose, difference, make_case

ROOT = Path(__file__).resolve().parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="these are the interpreted tests")
def test_in_tritons_interpreter():
    """Triton reads the variable when it is imported, so a process of its own has it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_tritons_interpreter")


@interpreted
@pytest.mark.parametrize(("tokens", "dtype"), [(39, torch.float32), (26, torch.float16), (1, torch.bfloat16)])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "packed_rows"])  # PyTorch's own, for CUDA alone
def test_a_fused_form_computes_what_the_plain_one_does(name, tokens, dtype, monkeypatch):
    monkeypatch.setattr("model.moe.GROUP_MULTIPLE", 8)  # rows that pad take the interpreter as long as others
    case = make_case(name, ODD, tokens)
    assert difference(case, name, torch.device("cpu"), dtype) < 1


@interpreted
def test_a_network_with_all_of_them_learns_as_the_plain_one_does():
    config = replace(ODD, use_moe=False, intermediate_size=40, num_hidden_layers=2, vocab_size=70)
    torch.manual_seed(0)
    plain = CausalLM(config)
    fused = copy.deepcopy(plain)
    fused.use_kernels(Kernels.fused(name for name in NAMES if name != "packed_rows"))
    ids = torch.randint(3, 70, (2, 8), generator=torch.Generator().manual_seed(0))
    for model in (plain, fused):
        model(ids[:, :-1], ids[:, 1:]).total.backward()
    for (name, parameter), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


CHECKED = {"config": ODD, "tokens": 74, "device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def plain_for_fused(monkeypatch):
    """Plain forms in place of the fused ones, which a CPU cannot run; a test plants one that is wrong among them."""
    forms = {name: getattr(Kernels(), name) for name in NAMES}
    monkeypatch.setattr("model.kernels._FUSED", forms)
    monkeypatch.setattr("model.kernels.check.times", lambda *_: (2.0, 1.0))
    return forms


def test_what_computes_the_same_passes(plain_for_fused):
    assert choose(**CHECKED) == (list(NAMES), [])


def test_a_wrong_kernel_is_refused_and_the_others_stay(plain_for_fused):
    def combine(y_PH, weight_SK, row_SK, source_P):
        return Kernels().combine(y_PH, weight_SK.flip(1), row_SK, source_P)

    plain_for_fused["combine"] = combine
    chosen, (line,) = choose(**CHECKED)
    assert chosen == [name for name in NAMES if name != "combine"]
    assert re.fullmatch(r"fused kernel combine left out: it differs from plain PyTorch by .* at 74 tokens", line)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.01


def test_a_kernel_whose_gradient_alone_is_wrong_is_refused(plain_for_fused):
    plain_for_fused["dispatch"] = lambda x, *places: Kernels().dispatch(WrongBackward.apply(x), *places)
    assert "dispatch" not in choose(**CHECKED)[0]


def test_a_kernel_that_gives_nan_or_does_not_compile_is_refused(plain_for_fused):
    def broken(*_args):
        raise RuntimeError("ptxas died")

    def silent(*_args):
        raise AssertionError

    plain_for_fused["add_norm"], plain_for_fused["project"] = broken, silent
    plain_for_fused["router_logits"] = lambda x, weight: Kernels().router_logits(x, weight) * float("nan")
    chosen, lines = choose(**CHECKED)
    assert not {"add_norm", "project", "router_logits"} & set(chosen)
    assert lines[0] == "fused kernel add_norm left out: it does not run here (RuntimeError: ptxas died)"
    assert lines[1].endswith("it does not run here (AssertionError: no message)")
    assert "differs from plain PyTorch by inf" in lines[2]


def test_a_slower_kernel_is_left_out_but_a_continued_run_keeps_its_own(plain_for_fused, monkeypatch):
    monkeypatch.setattr("model.kernels.check.times", lambda *_: (1.0, 1.5))
    chosen, lines = choose(**CHECKED)
    assert chosen == [] and "slower than plain PyTorch here (1.500 ms against 1.000)" in lines[0]
    assert choose(**CHECKED, earlier=["combine"]) == (["combine"], [])

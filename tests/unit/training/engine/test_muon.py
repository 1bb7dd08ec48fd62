"""The orthogonalisation of Muon's updates: singular values that are known, in every place that DeepSpeed calls it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor

from training.engine.muon import COEFFICIENTS, install_polar, orthogonalize, update

LOWEST, ERROR = 0.01, 0.27  # where the coefficients begin, and how far from 1 they end
DEEPSPEEDS_IMPORT = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
SHAPES = [(24, 24), (16, 60), (60, 16), (1, 8), (8, 1)]


def matrix_of(values: Tensor, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with these singular values, and its singular vectors U (m, k) and V (n, k)."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(size, len(values), generator=generator)).Q for size in shape)
    return u * values @ v.T, u, v


def minimax(low: float, high: float) -> tuple[np.ndarray, float]:
    """The odd polynomial of degree 5 that is nearest to 1 on [low, high], and its error: Remez' exchange."""
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(60):
        points = np.array([low, *inner, high])
        a, b, c, error = np.linalg.solve(np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1), np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)])
    return np.array([a, b, c]), abs(error)


def test_the_coefficients_are_the_minimax_polynomials_one_after_the_other():
    low, high = LOWEST, 1.0
    for written in COEFFICIENTS:
        best, error = minimax(low, high)
        assert written == pytest.approx(best, abs=1e-4)
        low, high = 1 - error, 1 + error
    assert error == pytest.approx(ERROR, abs=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_brought_near_to_1_and_singular_vectors_stay(shape):
    values = torch.logspace(np.log10(2 * LOWEST), 0, min(shape))
    matrix, u, v = matrix_of(values, shape)
    result = orthogonalize(matrix, torch.float32)
    inside = u.T @ result @ v  # diagonal, if the vectors are the same
    assert result.shape == shape
    assert (inside.diagonal() - 1).abs().max() <= ERROR + 0.005
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-4
    assert (result - u * inside.diagonal() @ v.T).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e4])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    expected = orthogonalize(matrix, torch.float32)
    assert torch.allclose(orthogonalize(matrix * scale, torch.float32), expected, atol=1e-4)
    assert not orthogonalize(matrix * 0, torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_stack_each_matrix_is_its_own(dtype):
    stack = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(2))
    together = orthogonalize(stack, dtype).float()
    alone = torch.stack([orthogonalize(matrix, dtype).float() for matrix in stack])
    assert torch.allclose(together, alone, atol=1e-4 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(96),
        torch.logspace(0, -6, 96),
        1 / torch.arange(1, 97),
        torch.cat([torch.ones(1), torch.full((95,), 1e-4)]),
        torch.cat([torch.ones(4), torch.zeros(92)]),
    ],
    ids=["equal", "geometric", "power law", "one large", "rank 4"],
)
def test_in_16_bits_no_spectrum_makes_it_grow(values):
    """Rounding moves the largest directions: 2.0 was seen. Four iterations of a 256 x 832 matrix reached 318."""
    result = orthogonalize(matrix_of(values, (96, 300))[0], torch.bfloat16).float()
    assert torch.linalg.matrix_norm(result, 2) < 2.5


@pytest.fixture
def deepspeeds(monkeypatch):
    """DeepSpeed's modules that a call of `install_polar` changes; they are put back."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for module in (original_muon, muon_optimizer):
        monkeypatch.setattr(module, "muon_update", module.muon_update)
    with torch._dynamo.config.patch(disable=True):
        yield original_muon, muon_optimizer


@pytest.mark.filterwarnings(DEEPSPEEDS_IMPORT)
def test_deepspeed_uses_it_where_the_json_says_so(deepspeeds):
    plain = {"optimizer": {"type": "Muon", "params": {"ns_method": "standard"}}}
    assert install_polar(plain, bf16_fast=False) is plain
    asked = {"optimizer": {"type": "Muon", "params": {"ns_method": "polar", "lr": 1}}, "steps_per_print": 1}
    read = install_polar(asked, bf16_fast=False)
    assert read == {"optimizer": {"type": "Muon", "params": {"ns_method": "standard", "lr": 1}}, "steps_per_print": 1}
    assert asked["optimizer"]["params"]["ns_method"] == "polar"  # what the run saves
    gradient = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    theirs = deepspeeds[0].muon_update(gradient.clone(), torch.zeros(64, 16), ns_method="gram")
    assert not torch.allclose(theirs, 2 * orthogonalize(gradient, torch.float32), atol=0.05)  # of another engine
    for module in deepspeeds:
        step = module.muon_update(gradient.clone(), torch.zeros(64, 16), ns_method="standard")
        assert torch.allclose(step, 2 * orthogonalize(gradient, torch.float32), atol=1e-4)  # sqrt(64 / 16)
    install_polar(plain, bf16_fast=False)  # of an engine after it in the same process
    back = deepspeeds[0].muon_update(gradient.clone(), torch.zeros(64, 16), ns_method="standard")
    assert not torch.allclose(back, step, atol=0.05)


@pytest.mark.filterwarnings(DEEPSPEEDS_IMPORT)
@pytest.mark.parametrize("how", [{}, {"beta": 0.8}, {"nesterov": False}, {"num_heads": 3}], ids=str)
@pytest.mark.parametrize("shape", [(24, 10), (9, 20)])
def test_all_but_the_iteration_is_as_in_deepspeeds(deepspeeds, monkeypatch, how, shape):
    """Momentum, its look ahead, heads and the scale, over three steps."""
    monkeypatch.setattr(deepspeeds[0], "zeropower_via_newtonschulz5", lambda x, steps: orthogonalize(x, torch.float32))
    ours, theirs = torch.zeros(shape), torch.zeros(shape)
    for seed in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        step = update(gradient.clone(), ours, dtype=torch.float32, **how)
        expected = deepspeeds[0].muon_update(gradient.clone(), theirs, ns_method="standard", **how)
        assert torch.allclose(step, expected, atol=1e-4) and torch.allclose(ours, theirs)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_an_overflow_is_passed_on_and_stays_out_of_the_momentum(bad):
    momentum, gradient = torch.randn(12, 8), torch.randn(12, 8)
    before = momentum.clone()
    gradient[3, 2] = bad
    assert update(gradient, momentum, dtype=torch.float32) is gradient
    assert gradient[3, 2].isnan() if bad != bad else gradient[3, 2] == bad
    assert torch.equal(momentum, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_16_bits_and_their_sums(dtype):
    """ZeRO-2 keeps gradient and momentum in the parameters' precision; a sum of 160,000 is more than fp16 has."""
    gradient, momentum = torch.ones(400, 400, dtype=dtype), torch.zeros(400, 400, dtype=dtype)
    gradient[:, 0] = 2.0
    step = update(gradient.clone(), momentum, dtype=torch.float32)
    assert step.dtype == momentum.dtype == dtype
    assert torch.allclose(momentum, gradient * 0.05, rtol=0.01)
    expected = update(gradient.float(), torch.zeros(400, 400), dtype=torch.float32)
    assert torch.allclose(step.float(), expected, atol=0.005)


def test_a_stack_of_experts_is_matrices_of_their_own():
    gradients = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(4))
    together = update(gradients.clone(), torch.zeros(3, 20, 8), is_expert_group=True, dtype=torch.float32)
    for step, gradient in zip(together, gradients, strict=True):
        assert torch.allclose(step, update(gradient.clone(), torch.zeros(20, 8), dtype=torch.float32), atol=1e-4)


def test_a_sum_that_leaves_fp32_is_no_overflow():
    gradient = torch.zeros(4, 4)
    gradient[0] = 1e38
    assert torch.isfinite(gradient).all() and not torch.isfinite(gradient.sum())
    momentum = torch.zeros(4, 4)
    update(gradient, momentum, dtype=torch.float32)
    assert torch.allclose(momentum[0], torch.tensor(5e36)) and not momentum[1:].any()

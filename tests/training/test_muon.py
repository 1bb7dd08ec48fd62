"""The orthogonalisation of Muon's updates: singular values that are known, in every place that DeepSpeed calls it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.muon import COEFFICIENTS, chosen, orthogonalize

LOWEST, ERROR = 0.01, 0.27  # where the coefficients begin, and how far from 1 they end
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


@pytest.mark.parametrize("values", [
    torch.ones(96), torch.logspace(0, -6, 96), 1 / torch.arange(1, 97),
    torch.cat([torch.ones(1), torch.full((95,), 1e-4)]), torch.cat([torch.ones(4), torch.zeros(92)]),
], ids=["equal", "geometric", "power law", "one large", "rank 4"])  # fmt: skip
def test_in_16_bits_no_spectrum_makes_it_grow(values):
    """Rounding moves the largest directions: 2.0 was seen. Four iterations of a 256 x 832 matrix reached 318."""
    result = orthogonalize(matrix_of(values, (96, 300))[0], torch.bfloat16).float()
    assert torch.linalg.matrix_norm(result, 2) < 2.5


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # DeepSpeed's import
def test_deepspeeds_muon_uses_it_where_the_json_says_so(monkeypatch):
    from deepspeed.runtime.zero.muon import original_muon

    monkeypatch.setattr(original_muon, "zeropower_via_newtonschulz5", original_muon.zeropower_via_newtonschulz5)
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    plain = {"optimizer": {"type": "Muon", "params": {"ns_method": "standard"}}}
    assert chosen(plain, bf16_fast=False) is plain
    asked = {"optimizer": {"type": "Muon", "params": {"ns_method": "polar", "lr": 1}}, "steps_per_print": 1}
    read = chosen(asked, bf16_fast=False)
    assert read == {"optimizer": {"type": "Muon", "params": {"ns_method": "standard", "lr": 1}}, "steps_per_print": 1}
    assert asked["optimizer"]["params"]["ns_method"] == "polar"  # what the run saves
    gradient = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    update = original_muon.muon_update(gradient.clone(), torch.zeros(64, 16), ns_method="standard")
    assert torch.allclose(update, 2 * orthogonalize(gradient, torch.float32), atol=1e-4)  # sqrt(64 / 16)

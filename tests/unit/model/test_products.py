"""The fast way for few rows computes what `F.linear` does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.inference.gemv import LEAST_WEIGHTS, MOST_ROWS, few_rows_linear, reads_badly


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("outputs", [256, 255])
def test_it_is_the_linear_product(rows, outputs):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, 128, generator=generator)
    x = torch.randn(rows, 128, generator=generator)
    assert reads_badly(weight, rows) == (rows <= MOST_ROWS)
    torch.testing.assert_close(few_rows_linear(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-4)
    product = few_rows_linear(few_rows_linear(x, weight), weight.t().contiguous())
    torch.testing.assert_close(product, x @ weight.t() @ weight, atol=2e-2, rtol=1e-3)


def test_a_row_comes_back_as_a_row():
    """Strides of 1 in both directions would lead the next product into MKL's slow way."""
    assert few_rows_linear(torch.randn(1, 128), torch.randn(256, 128)).stride() == (256, 1)


def test_other_weights_keep_the_usual_product():
    large = torch.zeros(256, 128)
    assert not reads_badly(large.bfloat16(), 1)
    assert not reads_badly(large.t(), 1)
    assert not reads_badly(torch.zeros(1, LEAST_WEIGHTS - 1), 1)

"""The loss whose logits are never held, where only some targets count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import loss
from model.loss import IGNORED, linear_cross_entropy


def batch(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (20, 8), weights (30, 8), and targets of which every third is left out."""
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(30, 8, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(30, (20,), device=device)
    targets[::3] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counted", [None, 13])
def test_ignored_targets_are_left_out_of_loss_and_gradients(counted, dtype, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 150)  # five rows at a time
    hidden, weight, targets = batch(dtype=dtype)
    found = linear_cross_entropy(hidden, weight, targets, 10.0, counted)
    gradients = torch.autograd.grad(found, (hidden, weight))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, ignore_index=IGNORED, reduction="sum") / 10
    near = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found, expected, **near)
    for gradient, true in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(gradient.float(), true, **near)
    assert not gradients[0][::3].any()


def test_with_their_number_given_no_value_is_read_by_the_host():
    """Tensors of the meta device have no values: what would wait for a GPU fails there."""
    hidden, weight, targets = batch("meta")
    linear_cross_entropy(hidden, weight, targets, 10.0, 13).backward()
    assert hidden.grad is not None and hidden.grad.shape == hidden.shape
    with pytest.raises(RuntimeError):
        linear_cross_entropy(hidden, weight, targets, 10.0)

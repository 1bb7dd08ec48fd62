"""DeepSpeed's schedules, where a run goes from one to another."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupLR


def test_a_constant_rate_can_fall_to_zero_from_any_step():
    """The two schedules of docs/resuming.md: the second begins where the first is, with both halves of Muon."""
    peaks = [0.02, 0.05]
    halves = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = torch.optim.SGD(halves)
    constant = WarmupLR(optimizer, warmup_num_steps=10, warmup_type="linear")
    for _ in range(20):
        constant.step()
    falling = WarmupCosineLR(optimizer, 25, warmup_num_steps=20, warmup_type="linear", cos_min_ratio=0.0)
    falling.load_state_dict(constant.state_dict())
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(5):
        falling.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    shares = [[rate / peak for rate, peak in zip(row, peaks, strict=True)] for row in rates]
    assert all(one == pytest.approx(other) for one, other in shares)
    assert shares[1][0] == pytest.approx(0.9, abs=0.1) and shares[-1][0] < 0.05
    assert all(later[0] < earlier[0] for earlier, later in pairwise(shares[1:]))

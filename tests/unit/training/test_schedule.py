"""The closed form of the schedule against DeepSpeed's own class, whose steps are taken one by one."""

import pytest
import torch

from training.config.schedule import warmup_cosine_lr

T4X2 = {"peak": 2e-4, "total": 27_600, "warmup": 500, "floor_ratio": 0.1}


def deepspeed_rates(steps, *, peak, **params):
    """The rate that each optimizer step runs with, as DeepSpeed's engine interleaves step and schedule."""
    from deepspeed.runtime.lr_schedules import WarmupCosineLR

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = WarmupCosineLR(optimizer, **params)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates


@pytest.fixture(scope="module")
def t4x2_rates():
    return deepspeed_rates(
        27_600, peak=2e-4, total_num_steps=27_600, warmup_num_steps=500, warmup_type="linear", cos_min_ratio=0.1
    )


@pytest.mark.parametrize("step", [0, 1, 2, 250, 499, 500, 501, 502, 13_800, 27_598, 27_599])
def test_t4x2_curve_is_deepspeeds(t4x2_rates, step):
    assert warmup_cosine_lr(step, **T4X2) == pytest.approx(t4x2_rates[step], rel=1e-12, abs=0)


def test_t4x2_landmarks():
    assert warmup_cosine_lr(0, **T4X2) == 0
    assert warmup_cosine_lr(251, **T4X2) == pytest.approx(1e-4)
    assert max(warmup_cosine_lr(step, **T4X2) for step in range(490, 520)) == pytest.approx(2e-4, rel=1e-6)
    assert warmup_cosine_lr(27_600, **T4X2) == pytest.approx(2e-5)
    assert warmup_cosine_lr(40_000, **T4X2) == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("total", "warmup", "kind", "start"),
    [(10, 4, "linear", 0.0), (10, 4, "log", 0.0), (10, 1, "linear", 0.25), (10, 1, "log", 0.0), (3, 3, "linear", 0.0)],
)
def test_short_and_logarithmic_curves(total, warmup, kind, start):
    expected = deepspeed_rates(
        14,
        peak=1.0,
        total_num_steps=total,
        warmup_num_steps=warmup,
        warmup_type=kind,
        warmup_min_ratio=start,
        cos_min_ratio=0.05,
    )
    ours = [
        warmup_cosine_lr(
            step, peak=1.0, total=total, warmup=warmup, floor_ratio=0.05, warmup_min_ratio=start, warmup_type=kind
        )
        for step in range(14)
    ]
    assert ours == pytest.approx(expected, abs=1e-15)

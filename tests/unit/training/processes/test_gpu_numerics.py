"""Which runs on a GPU take PyTorch's deterministic algorithms; the switches themselves exist without a GPU."""

from dataclasses import replace

import pytest
import torch

from model import ModelConfig
from training.processes.gpu_numerics import reproducible_kernels


@pytest.fixture(autouse=True)
def _switches(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = before
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.parametrize(
    ("changes", "deterministic"),
    [
        ({}, False),
        ({"use_moe": False}, False),
        ({"ep_size": 2}, True),
        ({"capacity_factor": 1.25}, True),
        ({"mask_documents": False}, True),
        ({"use_moe": False, "capacity_factor": 1.25}, False),
    ],
)
def test_only_what_would_add_in_any_order_takes_them(changes, deterministic):
    reproducible_kernels(replace(ModelConfig(), **changes))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction

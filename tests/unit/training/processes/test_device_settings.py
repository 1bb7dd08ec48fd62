"""Threads of a process that shares a machine's cores, and which runs take PyTorch's deterministic algorithms."""

from dataclasses import replace

import pytest
import torch

from model import ModelConfig
from training.processes import device_settings
from training.processes.device_settings import reproducible_kernels, share_cores


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_share_the_cores_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.setattr(device_settings, "usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_cores(2)
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    share_cores(2)
    assert torch.get_num_threads() == 3
    share_cores(12)
    assert torch.get_num_threads() == 1


@pytest.fixture
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
@pytest.mark.usefixtures("_switches")
def test_only_what_would_add_in_any_order_takes_them(changes, deterministic):
    reproducible_kernels(replace(ModelConfig(), **changes))
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction

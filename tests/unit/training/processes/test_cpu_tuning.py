"""Threads of a process that shares a machine's cores with others."""

import pytest
import torch

from training.processes import cpu_tuning


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_share_the_cores_unless_the_environment_says_how_many(monkeypatch):
    monkeypatch.setattr(cpu_tuning, "usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cpu_tuning.share_cores(2)
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    cpu_tuning.share_cores(2)
    assert torch.get_num_threads() == 3
    cpu_tuning.share_cores(12)
    assert torch.get_num_threads() == 1

"""What train.py finds wrong with the machine before it prepares anything."""

from dataclasses import replace

import pytest
import torch

from common.console import Console
from common.errors import UserError
from training import run
from training.planning.plan import PLANNED_T4X2
from training.processes.process_group import World

CPU = replace(PLANNED_T4X2, kind="cpu", compute_capability=None)


def test_more_processes_than_gpus_are_refused():
    run._check_gpus(PLANNED_T4X2, World(0, 2, 0, 2), Console(0))
    run._check_gpus(PLANNED_T4X2, World(3, 4, 1, 2), Console(0))  # two machines
    with pytest.raises(UserError, match=r"3 processes on 2 GPUs of .*--num_gpus 2"):
        run._check_gpus(PLANNED_T4X2, World(0, 3, 0, 3), Console(0))


def test_a_gpu_that_a_cuda_build_cannot_use_is_an_error_and_else_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(run, "why_unusable", lambda *_: "driver 535 is too old")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="535"):
        run._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    monkeypatch.setattr(torch.version, "cuda", None)
    run._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    assert "WARNING: driver 535" in capsys.readouterr().out
    monkeypatch.setattr(run, "why_unusable", lambda *_: None)
    run._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    assert not capsys.readouterr().out

"""What train.py finds wrong with the machine before it prepares anything."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.console import Console
from common.errors import UserError
from common.nvidia import Driver
from training import start
from training.config import schema
from training.planning.plan import PLANNED_T4X2
from training.processes.process_group import World

CPU = replace(PLANNED_T4X2, kind="cpu", compute_capability=None)


def test_more_processes_than_gpus_are_refused():
    start._check_gpus(PLANNED_T4X2, World(0, 2, 0, 2), Console(0))
    start._check_gpus(PLANNED_T4X2, World(3, 4, 1, 2), Console(0))  # two machines
    with pytest.raises(UserError, match=r"3 processes on 2 GPUs of .*--num_gpus 2"):
        start._check_gpus(PLANNED_T4X2, World(0, 3, 0, 3), Console(0))


def test_a_gpu_that_a_cuda_build_cannot_use_is_an_error_and_else_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(start, "find_driver", lambda: Driver("535.1", True))
    monkeypatch.setattr(start, "why_unusable", lambda *_: "driver 535 is too old")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="535"):
        start._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    monkeypatch.setattr(torch.version, "cuda", None)
    start._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    assert "WARNING: driver 535" in capsys.readouterr().out
    monkeypatch.setattr(start, "why_unusable", lambda *_: None)
    start._check_gpus(CPU, World(0, 1, 0, 1), Console(0))
    assert not capsys.readouterr().out


WITHOUT_PYTORCH = """
import sys
from training.start import start
status = start(sys.argv[1:], "")
sys.exit(99 if "torch" in sys.modules else status)
"""


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (["--help"], 0),
        (["--learning"], 2),
        (["--data", "nowhere.jsonl"], 2),
        (["--deepspeed_config", "nowhere.json"], 2),
        (["--set", "gradient_cliping=1", "zero_optimization.stage=3"], 2),
        (["--resume", "nowhere"], 2),
    ],
)
def test_what_is_said_before_the_start_does_not_wait_for_pytorch(flags, status):
    schema.keys()  # kept, now
    code = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, *flags],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
    ).returncode
    assert code == status

"""W&B and Comet: all figures arrive, and a run that continues is the same run there."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.checkpointing.run_state import RunState
from training.engine.trackers import continue_trackers, own_axes

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("RUN_ID", "RESUME", "NAME", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", "")
        monkeypatch.delenv(f"WANDB_{name}")


def test_a_run_that_continues_keeps_its_id(tmp_path):
    blocks = {"wandb": {"enabled": True}, "comet": {"enabled": True}}
    first = RunState()
    config = continue_trackers(blocks, tmp_path / "mine", first)
    continued = RunState.model_validate_json(first.model_dump_json())
    assert continue_trackers(blocks, tmp_path / "mine", continued) == config
    assert os.environ["WANDB_RUN_ID"] == first.tracker_id == config["comet"]["experiment_key"]
    assert os.environ["WANDB_NAME"] == "mine" and config["comet"]["samples_log_interval"] == 1
    assert 32 <= len(first.tracker_id) <= 50 and first.tracker_id.isalnum()  # as Comet wants it
    assert RunState().tracker_id != first.tracker_id


def test_what_the_user_has_set_counts_more(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    blocks = {"wandb": {"enabled": True}, "comet": {"enabled": True, "samples_log_interval": 500}}
    assert continue_trackers(blocks, tmp_path, RunState())["comet"]["samples_log_interval"] == 500
    assert os.environ["WANDB_RUN_ID"] == "mine"


@pytest.mark.parametrize("blocks", [{}, {"wandb": {"enabled": False}}, {"tensorboard": {"enabled": True}}])
def test_without_trackers_nothing_changes(blocks, tmp_path):
    state = RunState()
    assert continue_trackers(blocks, tmp_path, state) == blocks
    assert state == RunState() and "WANDB_RUN_ID" not in os.environ


def test_steps_and_samples_are_axes_of_their_own(monkeypatch):
    """W&B drops a figure whose step is below the last: 256 samples are the first step."""
    logged: list[dict] = []
    fake = SimpleNamespace(define_metric=lambda name, step_metric: None, log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monitor = SimpleNamespace(enabled=True, wandb_monitor=SimpleNamespace(enabled=True))
    own_axes(monitor)
    monitor.wandb_monitor.write_events([("Train/Samples/lr", 0.1, 256), ("train/loss", 2.0, 1)])
    assert logged == [{"Train/Samples/lr": 0.1, "samples": 256}, {"train/loss": 2.0, "step": 1}]


SESSION = """
import sys
from pathlib import Path
import deepspeed
from deepspeed.monitor.config import DeepSpeedMonitorConfig
from deepspeed.monitor.monitor import MonitorMaster
from training.checkpointing.run_state import RunState
from training.engine.trackers import continue_trackers, own_axes

deepspeed.init_distributed("gloo")
block = {"enabled": True, "project": "p"} | ({"online": False} if sys.argv[2] == "comet" else {})
config = continue_trackers({sys.argv[2]: block}, Path(sys.argv[1]), RunState(tracker_id="a" * 32))
monitor = MonitorMaster(DeepSpeedMonitorConfig(**config))
own_axes(monitor)
for step in map(int, sys.argv[3:]):
    monitor.write_events([("Train/Samples/lr", 0.1, step * 256)])
    monitor.write_events([("train/loss", 1 / step, step)])
"""


def write_offline(folder: Path, tracker: str, *steps: int) -> None:
    """Write figures in a session of its own, as on a machine without a network."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29791"}
    variables |= {"DS_ACCELERATOR": "cpu", "WANDB_MODE": "offline", "COMET_OFFLINE_DIRECTORY": str(folder)}
    words = [sys.executable, "-c", SESSION, str(folder), tracker, *map(str, steps)]
    subprocess.run(words, cwd=ROOT, env=os.environ | variables, check=True, capture_output=True, timeout=600)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed")
def test_wandb_has_all_figures_of_all_sessions_in_one_run(tmp_path):
    write_offline(tmp_path, "wandb", 2, 4)
    write_offline(tmp_path, "wandb", 8)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{'a' * 32}.wandb"] * 2
    for path, losses in zip(files, (("0.5", "0.25"), ("0.125",)), strict=True):
        data = path.read_bytes()
        fields = (b"train/loss\x82\x01" + bytes([len(text)]) + text.encode() for text in losses)  # protocol buffers
        assert all(field in data for field in fields) and b"Train/Samples/lr" in data


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("comet_ml"), reason="comet_ml is not installed")
def test_comet_has_all_figures_of_all_sessions_in_one_experiment(tmp_path):
    write_offline(tmp_path, "comet", 1, 2)
    write_offline(tmp_path, "comet", 3)
    archives = sorted(tmp_path.glob("*.zip"), key=lambda path: path.stat().st_mtime)
    assert [path.name.partition("-")[0] for path in archives] == ["a" * 32] * 2
    counts = []
    for path in archives:
        messages = zipfile.ZipFile(path).read("messages.json").decode()
        counts.append([messages.count(f'"metricName":"{tag}"') for tag in ("train/loss", "Train/Samples/lr")])
    assert counts == [[2, 2], [1, 1]]

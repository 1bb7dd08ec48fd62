"""A folder with results of an earlier run, but without the large checkpoints that people leave behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from training.checkpointing.earlier_runs import check_earlier_run, set_aside_earlier_run


def run_folder(path: Path, *, steps: int, summary: int | None = None, save_interval: int = 100) -> Path:
    """A run with results of `steps` steps and no checkpoint; `summary`: the steps after which it ended in order."""
    for name in ("model", "tensorboard", "logs", "checkpoints"):
        (path / name).mkdir(parents=True)
    (path / "model" / "model.safetensors").write_text(f"weights of {steps}")
    lines = [{"step": step, "split": "train"} for step in range(0, steps + 1, 10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    (path / "run.json").write_text(json.dumps({"flags": {"save_interval": save_interval}}))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps({"steps": summary}))
    return path


REMNANTS = ["model", "metrics.jsonl", "summary.json", "tensorboard", "samples.jsonl", "run.json", "checkpoints"]


@pytest.mark.parametrize("missing", REMNANTS)
def test_results_of_a_run_whose_checkpoints_are_gone_are_not_replaced(tmp_path, missing):
    output = run_folder(tmp_path / "run", steps=200, summary=200)
    (output / "samples.jsonl").write_text("{}\n")
    shutil.rmtree(output / missing) if (output / missing).is_dir() else (output / missing).unlink()
    with pytest.raises(UserError, match=r"of an earlier run, but no checkpoint.*--resume never.*run/earlier-1"):
        check_earlier_run(output, "auto")


@pytest.mark.parametrize("only", REMNANTS[:-2])
def test_a_single_remnant_is_enough(tmp_path, only):
    output = run_folder(tmp_path / "whole", steps=200, summary=200)
    (output / "samples.jsonl").write_text("{}\n")
    (tmp_path / "run").mkdir()
    (output / only).rename(tmp_path / "run" / only)
    with pytest.raises(UserError, match=f"holds {only} of an earlier run"):
        check_earlier_run(tmp_path / "run", "auto")


@pytest.mark.parametrize(
    ("steps", "summary"), [(0, None), (90, None), (100, "torn"), (90, 90), (100, None), (10, 0), (0, 0)]
)
def test_a_run_that_died_before_its_first_checkpoint_starts_anew_and_its_files_are_kept(tmp_path, steps, summary):
    output = run_folder(tmp_path / "run", steps=steps, summary=None if summary == "torn" else summary)
    if summary == "torn":
        (output / "summary.json").write_text('{"steps": ')
    saved = steps >= 100 or summary == 90
    if saved:
        with pytest.raises(UserError):
            check_earlier_run(output, "auto")
    else:
        check_earlier_run(output, "auto")
    weights = (output / "model" / "model.safetensors").read_text()
    said = set_aside_earlier_run(output)
    assert (f"after {steps} steps, before its first checkpoint" in said) is not saved
    assert sorted(path.name for path in output.iterdir()) == ["checkpoints", "earlier-1", "logs"]
    assert (output / "earlier-1" / "model" / "model.safetensors").read_text() == weights
    assert (output / "earlier-1" / "run.json").is_file()


def test_each_earlier_run_has_a_folder_of_its_own(tmp_path):
    output = run_folder(tmp_path / "run", steps=200)
    assert set_aside_earlier_run(output).endswith("earlier-1")
    assert set_aside_earlier_run(output) is None
    check_earlier_run(output, "auto")
    (output / "model").symlink_to("nowhere")  # a link without its target is somebody's all the same
    with pytest.raises(UserError, match="earlier-2"):
        check_earlier_run(output, "auto")
    assert set_aside_earlier_run(output).endswith("earlier-2")


def test_a_run_with_checkpoints_and_one_that_is_told_are_let_through(tmp_path):
    output = run_folder(tmp_path / "run", steps=200)
    check_earlier_run(output, "never")
    check_earlier_run(tmp_path / "none", "auto")
    (output / "checkpoints" / "step-00000100").mkdir()
    check_earlier_run(output, "auto")

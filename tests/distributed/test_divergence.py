"""When the numbers go wrong: a report that says where, and with --on_divergence rollback a run that goes on."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
WORKER = Path(__file__).resolve().parents[1] / "workers" / "worker_divergence.py"
PACE = ["--save_interval", "4", "--eval_interval", "6", "--sample_interval", "12"]


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def state(run, step):
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "run_state.json").read_text())


@pytest.fixture(scope="module")
def run(processes, flags, workplace):
    """`run(name, fault, batches, *flags)`: its folder and how it ended; two processes."""

    def start(name, fault, batches, *more, count=2, **environment):
        arguments = flags(f"runs/{name}", *PACE, *more)
        done = processes.ranks(count, [WORKER, fault, batches, *arguments], PYTHONPATH=WORKER.parents[2], **environment)
        return workplace / "runs" / name, done

    return start


@pytest.fixture(scope="module")
def stopped(run):
    return run("stopped", "layer", "6")


@pytest.fixture(scope="module")
def rolled_back(run):
    return run("rolled-back", "gradient", "6", "--on_divergence", "rollback")


def test_it_stops_with_a_report(stopped):
    folder, done = stopped
    assert done.status == 1
    [report] = records(folder / "divergence.jsonl")
    assert (report["step"], report["batch"]) == (7, 6)
    assert report["what"] == "the loss is not a finite number"
    assert "all weights are finite, the output of model.layers.1.self_attn.o_proj is not" in report["where"]
    assert len(set(report["rows"])) == 8
    for words in (
        "DIVERGED: the loss is not a finite number at step 7, on batch 6",
        "o_proj",
        "the last good checkpoint is runs/stopped/checkpoints/step-00000004",
        "--on_divergence rollback",
    ):
        assert words in done.output
    assert "Traceback" not in done.output
    assert json.loads((folder / "summary.json").read_text())["reason"].startswith("diverged: the loss is not")


def test_what_went_wrong_was_not_saved(stopped):
    folder, _ = stopped
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == ["step-00000004"]
    weights = [t for path in folder.glob("checkpoints/*/*.safetensors") for t in load_file(path).values()]
    assert all(t.isfinite().all() for t in weights)
    assert all(t.isfinite().all() for t in load_file(folder / "model/model.safetensors").values())


def test_the_next_start_goes_on_from_the_checkpoint(stopped, run):
    folder, done = run("stopped", "loss", "99")
    assert done.status == 0, done.output
    assert "continuing from runs/stopped/checkpoints/step-00000004 (step 4)" in done.output
    assert [row["step"] for row in records(folder / "metrics.jsonl") if row["split"] == "train"] == [*range(1, 13)]


def test_a_rollback_leaves_the_batch_out_and_goes_on(rolled_back):
    folder, done = rolled_back
    assert done.status == 0, done.output
    assert "DIVERGED: the gradient norm is not a finite number at step 7, on batch 6" in done.output
    assert "back at runs/rolled-back/checkpoints/step-00000004 (rollback 1, at most 3)" in done.output
    assert "; skipped: batch 6\n" in done.output
    assert (state(folder, 12)["skipped_batches"], state(folder, 12)["rollbacks"]) == ([6], 1)
    rows = records(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "train"] == [*range(1, 13)]
    assert [row["step"] for row in rows if row["split"] == "val"] == [0, 6, 12]


def test_tensorboard_has_no_step_twice(rolled_back):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(rolled_back[0] / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [*range(1, 13)]


def test_the_run_is_the_one_that_never_saw_the_batch(rolled_back, run):
    """Whatever it was that went wrong in it, and wherever it was noticed."""
    folder, done = run("other-fault", "loss", "6", "--on_divergence", "rollback")
    assert done.status == 0, done.output
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (rolled_back[0], folder))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_weights_that_went_wrong_are_found_before_they_are_saved(run):
    """The batch that is blamed first is the last; if that was not it, all since the checkpoint are left out."""
    folder, done = run("weights", "weights", "6", "--on_divergence", "rollback", count=1)
    assert done.status == 0, done.output
    assert "the weights are not finite at step 8, on batch 7" in done.output
    assert "1 weight tensor not finite, model." in done.output
    assert state(folder, 12)["skipped_batches"] == [4, 5, 6, 7, 8]


def test_it_does_not_go_back_for_ever(run):
    folder, done = run("for-ever", "loss", "all", "--on_divergence", "rollback", "--max_rollbacks", "2", count=1)
    assert done.status == 1
    assert done.output.count("back at runs/for-ever/checkpoints/step-00000000") == 2
    assert "gone back 2 times already (--max_rollbacks)" in done.output
    assert json.loads((folder / "summary.json").read_text())["steps"] == 0


def test_in_fp16_an_overflow_is_skipped_and_only_the_lowest_scale_ends_the_run(run):
    scale = ["--set", "fp16.enabled=true", "fp16.initial_scale_power=3", "fp16.hysteresis=1"]
    folder, done = run("lowest", "gradient", "all", *scale, count=1)
    assert done.status == 1
    rows = [row for row in records(folder / "metrics.jsonl") if row["split"] == "train"]
    assert [row["loss_scale"] for row in rows] == [4, 2, 1]
    assert [row["skipped_steps"] for row in rows] == [1, 2, 3]
    assert "the gradients overflow fp16 even at the lowest loss scale (1) at step 4" in done.output
    assert "there is no checkpoint before it" in done.output
    assert "Traceback" not in done.output

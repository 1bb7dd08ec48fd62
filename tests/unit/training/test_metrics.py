"""metrics.jsonl and TensorBoard: what is written, and what is forgotten when a run continues."""

import json
from types import SimpleNamespace

import pytest

from evaluation.language_figures import Bucket, LanguageFigures
from evaluation.minimal_pairs import PairResult
from training.checkpointing.run_state import RunState
from training.monitoring.metrics import Metrics
from training.monitoring.terminal import Progress


class Monitor:
    """What DeepSpeed's has of it."""

    def __init__(self, enabled=True):
        self.enabled = enabled
        self.events = []
        self.tb_monitor = SimpleNamespace(enabled=False)

    def write_events(self, events):
        self.events += events


def lines(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def at(step, *undone):
    """A run that has done all that was to be done at `step`, unless told otherwise."""
    return RunState(step=step, done={name: step for name in ("evaluation", "sample") if step and name not in undone})


def written(folder, *steps):
    rows = ({"step": step, "split": "train" if step else "val"} for step in steps)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_line_is_an_object_with_its_step_and_split(tmp_path):
    metrics = Metrics(tmp_path, Monitor(), at(0))
    metrics.write("train", 3, {"loss": 2.5, "skipped_steps": 0, "expert_load": [[0.5, 0.5]]})
    assert lines(tmp_path) == [
        {"step": 3, "split": "train", "loss": 2.5, "skipped_steps": 0, "expert_load": [[0.5, 0.5]]}
    ]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_becomes_null(tmp_path, value):
    monitor = Monitor()
    Metrics(tmp_path, monitor, at(0)).write("train", 1, {"loss": 2.0, "grad_norm": value})
    assert lines(tmp_path)[0]["grad_norm"] is None
    assert monitor.events == [("train/loss", 2.0, 1)]


def test_what_is_none_is_left_out(tmp_path):
    Metrics(tmp_path, Monitor(), at(0)).write("train", 1, {"loss": 2.0, "loss_scale": None})
    assert "loss_scale" not in lines(tmp_path)[0]


def test_tensorboard_gets_the_numbers(tmp_path):
    monitor = Monitor()
    metrics = Metrics(tmp_path, monitor, at(0))
    metrics.write("val", 7, {"tokens": 700, "loss": 2.0, "bits_per_byte": 1.5})
    assert monitor.events == [("val/loss", 2.0, 7), ("val/bits_per_byte", 1.5, 7)]


def test_baselines_are_levels_from_the_first_step_to_the_last(tmp_path):
    monitor = Monitor()
    Metrics(tmp_path, monitor, at(0), baselines={"unigram": 6.5}, total_steps=90)
    assert monitor.events == [("baselines/unigram", 6.5, 0), ("baselines/unigram", 6.5, 90)]
    Metrics(tmp_path, monitor, at(30), baselines={"unigram": 6.5}, total_steps=90)  # a run that continues has them
    assert len(monitor.events) == 2


def test_tensorboard_shows_repetition_on_its_own_page_and_the_entropy_of_each_layer(tmp_path):
    monitor = Monitor()
    metrics = Metrics(tmp_path, monitor, at(0))
    metrics.write("val", 7, {"loss": 2.0, "distinct_2": 0.5, "true_distinct_2": 0.6, "loops": 0.25})
    metrics.write("train", 7, {"unchanged": 0.0, "router_entropy": [0.5, 0.75]})
    assert monitor.events == [
        ("val/loss", 2.0, 7),
        ("repetition/distinct_2", 0.5, 7),
        ("repetition/true_distinct_2", 0.6, 7),
        ("repetition/loops", 0.25, 7),
        ("train/unchanged", 0.0, 7),
        ("router_entropy/layer_0", 0.5, 7),
        ("router_entropy/layer_1", 0.75, 7),
    ]


def test_an_alarm_is_a_line_of_its_own_file(tmp_path):
    Metrics(tmp_path, Monitor(), at(0)).alarm(30, "flat_loss", "the loss does not move")
    Metrics(tmp_path, Monitor(), at(60)).alarm(70, "overfitting", "validation rises")
    text = (tmp_path / "alarms.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 30, "alarm": "flat_loss", "message": "the loss does not move"},
        {"step": 70, "alarm": "overfitting", "message": "validation rises"},
    ]


def test_what_is_later_than_the_checkpoint_is_forgotten_everywhere(tmp_path):
    for name in ("metrics", "samples", "alarms"):
        lines = (f'{{"step": {step}, "split": "val"}}\n' for step in (0, 6, 7))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    Metrics(tmp_path, Monitor(), at(6))
    for name in ("metrics", "samples", "alarms"):
        kept = [json.loads(line)["step"] for line in (tmp_path / f"{name}.jsonl").open()]
        assert kept == [0, 6]


def test_what_was_made_up_for_after_the_checkpoint_is_made_up_for_again(tmp_path):
    """A request to stop came before the evaluation of step 6; the next session made it, then was killed."""
    stopped = at(6, "evaluation", "sample")
    stopped.alarms = ["flat_loss"]
    for _ in range(3):
        metrics = Metrics(tmp_path, Monitor(), stopped)
        if not (tmp_path / "metrics.jsonl").exists():
            metrics.write("train", 6, {"loss": 1.0})
            metrics.alarm(6, "flat_loss", "of the training loss")
        metrics.write("val", 6, {"loss": 2.0})
        metrics.alarm(6, "overfitting", "of the evaluation")
        metrics.sample(6, [{"prompt": "小", "text": "红"}])
    assert [row["split"] for row in lines(tmp_path)] == ["train", "val"]
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    alarms = [json.loads(line)["alarm"] for line in (tmp_path / "alarms.jsonl").open()]
    assert alarms == ["flat_loss", "overfitting"]


def test_what_was_made_before_the_checkpoint_is_not_made_again(tmp_path):
    for step in (0, 6):
        Metrics(tmp_path, Monitor(), at(step)).write("val", step, {"loss": 2.0})
    start = RunState(step=0, done={"evaluation": 0, "sample": 0})  # a checkpoint from before the first step
    Metrics(tmp_path, Monitor(), start)
    assert [row["step"] for row in lines(tmp_path)] == [0]


def test_without_a_monitor_there_is_still_the_file(tmp_path):
    monitor = Monitor(enabled=False)
    metrics = Metrics(tmp_path, monitor, at(0))
    metrics.write("train", 1, {"loss": 2.0, "expert_load": [[1.0]]})
    metrics.sample(1, [{"prompt": "小", "text": "红"}])
    metrics.sync()
    assert monitor.events == []
    assert len(lines(tmp_path)) == 1


def test_each_line_is_on_the_disk_at_once(tmp_path):
    metrics = Metrics(tmp_path, Monitor(), at(0))
    metrics.write("train", 1, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    metrics.write("train", 2, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_lines_after_the_step_to_continue_from_are_dropped(tmp_path):
    written(tmp_path, 0, 3, 6, 6, 7, 9)
    Metrics(tmp_path, Monitor(), at(6)).write("train", 7, {})
    assert [line["step"] for line in lines(tmp_path)] == [0, 3, 6, 6, 7]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    written(tmp_path, 0, 1, 2)  # from a run that ended before its first checkpoint
    metrics = Metrics(tmp_path, Monitor(), at(0))
    assert lines(tmp_path) == []
    metrics.sync()


@pytest.mark.parametrize("half", ['{"step": 3, "spl', "3", "[3]", '{"loss": 1.0}', "\xff"])
def test_half_a_line_is_dropped(tmp_path, half):
    written(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    Metrics(tmp_path, Monitor(), at(5)).write("train", 6, {})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 6]


def test_the_figures_of_the_end_are_in_a_file_and_on_tensorboard(tmp_path):
    figures = LanguageFigures(
        {"all": PairResult(pairs=40, share=0.75, low=0.6, high=0.86)},
        bits_per_byte_by_position=[Bucket(start=8, end=32, bits_per_byte=1.5, bytes=900)],
        bits_per_byte_by_length=[],
    )
    monitor = Monitor()
    Metrics(tmp_path, monitor, at(120)).language(120, figures)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["step"] == 120 and found["minimal_pairs"]["all"]["share"] == 0.75
    assert monitor.events == [("minimal_pairs/all", 0.75, 120), ("bits_per_byte_by_position/from_8", 1.5, 120)]


@pytest.mark.parametrize(
    ("conversations", "made_of"), [(False, ""), (True, ", made of questions too, which are not learned")]
)
def test_minimal_pairs_of_conversations_are_said_to_be_of_questions_too(conversations, made_of):
    lines = []
    console = SimpleNamespace(stream=None, interactive=False, say=lines.append)
    found = PairResult(pairs=95, share=0.484, low=0.386, high=0.583)
    Progress(console, 0, 10).minimal_pairs(found, conversations=conversations)
    assert lines == [f"  minimal pairs: 48.4% of 95{made_of} (95 % interval 38.6% to 58.3%; chance is 50 %)"]

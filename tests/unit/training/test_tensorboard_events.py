"""TensorBoard's event files: what a run that goes back to a checkpoint forgets, and what a full disk does not lose."""

from collections import Counter
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from training.checkpointing.run_state import RunState
from training.monitoring import tensorboard_events
from training.monitoring.append_only_files import DiskNotice
from training.monitoring.metrics import Metrics

BATCH = 8


class Monitor:
    """DeepSpeed's, as far as it is met: our figures and its own through one SummaryWriter, its own flushed at once."""

    def __init__(self, folder):
        self.enabled = True
        self.tb_monitor = SimpleNamespace(enabled=True, summary_writer=SummaryWriter(str(folder / "tensorboard")))

    def write_events(self, figures):
        for figure in figures:
            self.tb_monitor.summary_writer.add_scalar(*figure)
        self.tb_monitor.summary_writer.flush()


def at(step):
    """A run that has done all that was to be done at `step`, or starts anew."""
    return RunState(step=step, done={"evaluation": step, "sample": step} if step else {})


class Session:
    """A process of a run that writes everything at every step."""

    def __init__(self, folder, step):
        self.step, self.monitor = step, Monitor(folder)
        levels = {"unigram": 6.5, "bigram": 4.5}
        self.metrics = Metrics(folder, self.monitor, at(step), samples_per_step=BATCH, baselines=levels, total_steps=12)
        if step == 0:
            self.metrics.write("val", 0, {"loss": 9.0})

    def run(self, until):
        for step in range(self.step + 1, until + 1):
            self.monitor.write_events([("Train/Samples/lr", 0.1 * step, step * BATCH)])
            self.metrics.write("train", step, {"loss": 1 / step, "expert_load": [[0.5, 0.5]]})
            self.metrics.write("val", step, {"loss": 1 / step})
            self.metrics.sample(step, [{"prompt": "小", "text": str(step)}])
        self.step = until
        return self


def figures(folder):
    """How often each (tag, x) is there, over all files."""
    found = Counter()
    for path in (folder / "tensorboard").glob("events.*"):
        for event in map(Event.FromString, tensorboard_events.read_events(path)):
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


@pytest.fixture
def uninterrupted(tmp_path):
    Session(tmp_path / "whole", 0).run(12)
    return figures(tmp_path / "whole")


def test_the_figures_are_all_there(uninterrupted):
    tags = {"Train/Samples/lr", "train/loss", "val/loss", "expert_load", "samples/text_summary"}
    levels = {(f"baselines/{name}", x) for name in ("unigram", "bigram") for x in (0, 12)}
    begun = {("val/loss", 0)} | levels
    steps = {(tag, step * (BATCH if "lr" in tag else 1)) for tag in tags for step in range(1, 13)}
    assert set(uninterrupted) == begun | steps and set(uninterrupted.values()) == {1}


@pytest.mark.parametrize("returns", [[(9, 6)], [(9, 6), (8, 6), (12, 11)], [(7, 0)], [(12, 12)], [(5, 4), (5, 4)]])
def test_after_returns_to_a_checkpoint_nothing_is_missing_or_double(tmp_path, uninterrupted, returns):
    folder, step = tmp_path / "run", 0
    for reached, back in returns:
        Session(folder, step).run(reached)
        step = back
    Session(folder, step).run(12)
    assert figures(folder) == uninterrupted


def test_going_back_in_the_same_process(tmp_path, uninterrupted):
    session = Session(tmp_path / "run", 0).run(9)
    session.metrics.rewind(at(6))
    session.step = 6
    session.run(11)
    session.metrics.rewind(at(3))
    session.step = 3
    session.run(12)
    assert figures(tmp_path / "run") == uninterrupted
    steps = [line.split(",")[0] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in (0, *(step for step in range(1, 13) for _ in ("train", "val")))]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in board.Scalars("Train/Samples/lr")] == [BATCH * step for step in range(1, 13)]


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_record_that_a_kill_cut_in_two_is_dropped(tmp_path, uninterrupted, lost):
    Session(tmp_path / "run", 0).run(7)
    [path] = (tmp_path / "run" / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    Session(tmp_path / "run", 6).run(12)
    assert figures(tmp_path / "run") == uninterrupted


def test_a_file_with_nothing_to_lose_is_not_touched(tmp_path):
    Session(tmp_path, 0).run(6)
    [path] = (tmp_path / "tensorboard").iterdir()
    before = path.stat().st_mtime_ns, path.stat().st_ino
    Session(tmp_path, 6)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_what_is_not_at_the_end_is_dropped_too(tmp_path):
    """As two processes leave it that wrote to one file, or an earlier version of this project."""
    writer = SummaryWriter(str(tmp_path))
    for step in (1, 5, 2, 6, 3):
        writer.add_scalar("train/loss", 1.0, step)
    tensorboard_events.cut_back_events(
        tensorboard_events.take_over(writer, DiskNotice(tmp_path, print)), lambda tag, step: step <= 3
    )
    [path] = tmp_path.iterdir()
    kept = [Event.FromString(event) for event in tensorboard_events.read_events(path)]
    assert [event.step for event in kept[1:]] == [1, 2, 3]
    assert kept[0].file_version == "brain.Event:2"


def test_a_run_that_starts_anew_forgets_its_first_evaluation_and_old_files(tmp_path):
    Session(tmp_path, 0).run(3)
    Session(tmp_path, 0)
    assert len(figures(tmp_path)) == 5 and set(figures(tmp_path).values()) == {1}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_folder_outside_the_run_is_left_alone(tmp_path):
    """The JSON can name one that several runs share."""
    monitor = Monitor(tmp_path / "shared")
    monitor.write_events([("train/loss", 1.0, 9)])
    Metrics(tmp_path / "run", monitor, at(0))
    assert figures(tmp_path / "shared") == {("train/loss", 9): 1}


def test_an_event_file_of_ten_thousand_steps_is_cut_in_seconds(tmp_path):
    import time

    notice = DiskNotice(tmp_path, print)
    writer = SummaryWriter(str(tmp_path))
    events = tensorboard_events.take_over(writer, notice)
    for step in range(10_000):
        writer.add_scalar("Train/Samples/lr", 0.1, step)
    writer.flush()
    started = time.monotonic()
    tensorboard_events.cut_back_events(events, lambda tag, step: step <= 9_000)
    assert time.monotonic() - started < 10
    [path] = tmp_path.iterdir()
    assert len(list(tensorboard_events.read_events(path))) == 1 + 9_001

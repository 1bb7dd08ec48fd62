"""A full disk: what the user hears, what waits, what stays whole."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from torch.utils.tensorboard import SummaryWriter

from common import files
from common.errors import UserError
from training.checkpointing import checkpoint, write_failures
from training.checkpointing.earlier_runs import find
from training.checkpointing.run_state import RunState
from training.monitoring.append_only_files import AppendedFile, DiskNotice
from training.monitoring.metrics import Metrics
from training.planning.disk_space import space_line


@contextmanager
def mounted(folder, size):
    """A file system in memory."""
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def fill(folder, leave=0):
    """Use up the disk but for some bytes."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
        os.truncate(ballast, file.tell() - -(-leave // 4096) * 4096)
    return ballast


class Said(list):
    def __call__(self, text):
        self.append(text)


# --- files that grow --------------------------------------------------------------------------------------------------


def test_lines_wait_for_room_and_keep_their_order(small_disk):
    said = Said()
    file = AppendedFile(small_disk / "lines", DiskNotice(small_disk, said))
    lines = [f"{number:0999}\n".encode() for number in range(40)]
    assert all(file.append(line) for line in lines[:10])
    ballast = fill(small_disk, leave=8192)
    for line in lines[10:]:
        file.append(line)
    assert said == [
        f"  no space left on the disk of {small_disk}: metrics are kept in memory and written when there is space"
    ]
    written = (small_disk / "lines").read_bytes()
    assert b"".join(lines).startswith(written)
    assert written.endswith(b"\n")  # no half line
    ballast.unlink()
    assert file.flush()
    assert (small_disk / "lines").read_bytes() == b"".join(lines)
    assert len(said) == 2
    assert "no line of the metrics is missing" in said[1]


def test_half_a_piece_is_taken_back(tmp_path, monkeypatch):
    """A file system may take a part of it."""
    file, real = AppendedFile(tmp_path / "lines", DiskNotice(tmp_path, Said())), os.write
    file.append(b"first\n")

    def part(descriptor, data):
        if len(data) < 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:3])

    monkeypatch.setattr(os, "write", part)
    assert not file.append(b"second line\n")
    assert (tmp_path / "lines").read_bytes() == b"first\n"
    monkeypatch.undo()
    assert file.append(b"third\n")
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond line\nthird\n"


def monitor_of(folder):
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write_events(figures):
        for figure in figures:
            writer.add_scalar(*figure)
        writer.flush()

    return SimpleNamespace(
        enabled=True, write_events=write_events, tb_monitor=SimpleNamespace(enabled=True, summary_writer=writer)
    )


def steps_on_board(folder, tag="train/loss"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [event.step for event in board.Scalars(tag)]


def test_metrics_outlive_a_full_disk_and_nothing_is_lost(small_disk):
    said, run = Said(), small_disk / "run"
    run.mkdir()
    monitor = monitor_of(run)
    metrics = Metrics(run, monitor, RunState(), say=said)
    for step in range(1, 61):
        if step == 10:
            ballast = fill(small_disk)
        if step == 50:
            ballast.unlink()
        monitor.write_events([("Train/Samples/lr", 0.1, step)])
        metrics.write("train", step, {"loss": 2.0, "note": "x" * 3000})
        metrics.sample(step, [{"prompt": "小", "text": "红" * 300}])
        metrics.alarm(step, "name", "message")
    metrics.sync()
    assert [line.split(":")[0].split()[0] for line in said] == ["no", str(run)]
    for name in ("metrics", "samples", "alarms"):
        assert [json.loads(line)["step"] for line in (run / f"{name}.jsonl").open()] == list(range(1, 61)), name
    assert steps_on_board(run) == steps_on_board(run, "Train/Samples/lr") == list(range(1, 61))


def test_a_return_to_a_checkpoint_while_the_disk_is_full(small_disk):
    run = small_disk / "run"
    run.mkdir()
    metrics = Metrics(run, monitor_of(run), RunState(), say=Said())
    for step in range(1, 21):
        if step == 8:
            ballast = fill(small_disk)
        metrics.write("train", step, {"loss": 2.0, "note": "x" * 3000})
    metrics.rewind(RunState(step=12))
    for step in range(13, 16):
        metrics.write("train", step, {"loss": 1.0})
    ballast.unlink()
    metrics.write("train", 16, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == list(range(1, 17))
    assert steps_on_board(run) == list(range(1, 17))


def test_a_disk_that_stays_full_does_not_fail_the_end(small_disk):
    said = Said()
    metrics = Metrics(small_disk, monitor_of(small_disk), RunState(), say=said)
    fill(small_disk)
    for step in range(1, 40):
        metrics.write("train", step, {"loss": 2.0, "note": "x" * 3000})
    metrics.sync()
    assert len(said) == 1


# --- files that are replaced ------------------------------------------------------------------------------------------


def test_a_small_file_is_whole_or_as_before(small_disk):
    said = Said()
    write_failures.write_text(small_disk / "summary.json", "old", said)
    assert said == []
    fill(small_disk)
    write_failures.write_text(small_disk / "summary.json", "new" * 5000, said)
    assert said == [f"  {small_disk}/summary.json could not be written: no space left on the disk"]
    assert (small_disk / "summary.json").read_text() == "old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "summary.json"]


def test_the_end_of_a_file_can_be_cut_off_on_a_full_disk(small_disk):
    path = small_disk / "lines"
    path.write_bytes(b"one\ntwo\nthree\n")
    fill(small_disk)
    AppendedFile(path, DiskNotice(small_disk, Said())).keep_only(lambda line: line != b"three\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]
)
def test_a_full_disk_is_known_by_any_of_its_names(error):
    assert write_failures.is_full(error)
    assert write_failures.reason_of(error) == "no space left on the disk"


def test_another_error_is_not_called_a_full_disk():
    assert write_failures.reason_of(OSError(errno.EROFS, "Read-only file system")) == "Read-only file system"


def test_the_free_room_is_that_of_the_disk_where_the_run_will_be(small_disk):
    assert files.free_bytes(small_disk / "runs" / "new") == shutil.disk_usage(small_disk).free <= 2**20
    with pytest.raises(UserError, match=r"only [\d.]+ MB free"):
        space_line(small_disk / "runs" / "new", 10**6, 10**6, 2, 0, files.free_bytes(small_disk))


def test_the_size_of_a_run_so_far(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(100))
    (tmp_path / "two").write_bytes(bytes(10))
    assert files.size_of(tmp_path) == 110
    assert files.size_of(tmp_path / "none") == 0


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_goes_on_and_saves_when_there_is_room_again(tmp_path, processes, flags, train_py):
    pace = ("--max_steps", 120, "--save_interval", 5, "--keep_last", 2, "--eval_interval", 20, "--sample_interval", 60)
    with mounted(tmp_path / "disk", "9m") as folder:
        run = folder / "run"
        process, other = processes.start_ranks(2, [train_py, *flags(run, *pace)])
        try:
            process.wait_until(lambda: "step-00000010 (" in process.output, "the second checkpoint")
            # a save that fails gives back what it had written, which is taken again
            process.wait_until(lambda: fill(folder) and process.output.count("NOT SAVED") >= 3, "saves that fail")
            whole = find(run, "auto")
            assert [checkpoint.damage(path) for path in whole] == [None, None]
            (folder / "ballast").unlink()
            done = processes.finish(process, other)
        finally:
            process.stop_group()
            other.stop_group()
        assert done.status == 0, done.output
        for path in (run, *whole):  # the same names, said once
            assert str(path) in done.output
        # more than once if a save that failed left room for a moment
        assert done.output.count("metrics are kept in memory") == done.output.count("can be written to again") >= 1
        assert re.search(r"NOT SAVED: .*: no space left on the disk.*the checkpoints before it are whole", done.output)
        assert "Traceback" not in done.output + "".join(log.read_text() for log in (run / "logs").iterdir())
        assert json.loads((run / "summary.json").read_text())["reason"] == "finished"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 121))
        assert [row["step"] for row in rows if row["split"] == "val"] == list(range(0, 121, 20))
        assert steps_on_board(run) == list(range(1, 121))
        assert steps_on_board(run, "val/loss") == list(range(0, 121, 20))
        kept = find(run, "auto")
        assert kept[-1].name == "step-00000120"
        assert [checkpoint.damage(path) for path in kept] == [None, None]
        assert not [path for path in run.rglob("*") if path.name.endswith((".new", ".partial"))]


@pytest.mark.slow
def test_a_run_whose_end_cannot_be_saved_says_so_by_its_status(tmp_path, processes, flags, train_py):
    with mounted(tmp_path / "disk", "9m") as folder:
        command = [
            sys.executable,
            train_py,
            *flags(
                folder / "run",
                "--max_steps",
                40,
                "--save_interval",
                10,
                "--keep_last",
                1,
                "--eval_interval",
                40,
                "--sample_interval",
                40,
            ),
        ]
        process = processes.start(command)
        process.wait_until(lambda: "step-00000010 (" in process.output, "the first checkpoint")
        process.wait_until(lambda: fill(folder) and "NOT SAVED at the end" in process.output, "the end")
        done = processes.finish(process)
        assert done.status == 1, done.output
        assert "the checkpoints before it are whole; free some space and start again" in done.output
        assert "NOT SAVED at the end (finished): 40 of 40 steps" in done.output
        assert "the same command continues the run" in done.output
        (folder / "ballast").unlink()
        done = processes.finish(processes.start(command))
        assert done.status == 0 and "finished: 40 of 40 steps" in done.output, done.output
        assert checkpoint.damage(find(folder / "run", "auto")[-1]) is None

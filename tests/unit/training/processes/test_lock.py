"""One run at a time in a folder: refused, waited for, and free after a SIGKILL."""

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from training.processes.lock import RunLock

ROOT = Path(__file__).resolve().parents[4]
HOLDER = """
import os, sys, time
from pathlib import Path
from training.processes.lock import RunLock
lock = RunLock(Path("run"))
lock.acquire(print)
child = os.fork() if "fork" in sys.argv else 1
if child == 0:
    time.sleep(60)
print("holding", flush=True)
while not Path("end").exists():
    time.sleep(0.02)
lock.mark_ending()
print("ending", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def holder(processes, tmp_path, monkeypatch):
    """Another process that holds the lock of tmp_path/run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.processes.lock.GRACE", 0.5)
    started = []

    def start(*arguments):
        process = processes.start(
            ["/bin/sh", "-c", 'cd "$0" && exec "$@"', tmp_path, sys.executable, "-c", HOLDER, *arguments],
            PYTHONPATH=ROOT,
        )
        started.append(process)
        process.wait_until(lambda: "holding" in process.output, "the lock")
        return process

    yield start
    for process in started:
        process.stop_group()


def fail(text):
    pytest.fail(f"said {text!r}")


def test_a_second_run_is_refused_with_the_name_of_the_first(holder):
    process = holder("0")
    with pytest.raises(UserError) as error:
        RunLock(Path("run")).acquire(fail)
    assert re.fullmatch(
        rf"run: process {process.pid} on {re.escape(socket.gethostname())} has been training there "
        r"since [\d-]+ [\d:]+: wait for it, stop it, or give another --output",
        str(error.value),
    )


def test_a_run_that_is_ending_is_waited_for(holder):
    process = holder("2")
    Path("end").touch()
    said, started = [], time.monotonic()
    RunLock(Path("run")).acquire(said.append)
    assert 1 < time.monotonic() - started < 10
    [line] = said
    assert line.startswith(f"run: process {process.pid} on ")
    assert "is ending its run there; waiting for it, 60 s at most" in line


def test_a_run_that_does_not_end_is_waited_for_in_vain(holder, monkeypatch):
    monkeypatch.setattr("training.processes.lock.ENDING_TIMEOUT", 1.0)
    holder("60")
    Path("end").touch()
    with pytest.raises(UserError, match="has been ending its run there for more than 1 s"):
        RunLock(Path("run")).acquire(lambda text: None)


@pytest.mark.parametrize("arguments", [("0",), ("0", "fork")], ids=["alone", "with a child that lives on"])
def test_a_killed_run_leaves_the_folder_free(holder, arguments):
    process = holder(*arguments)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lock = RunLock(Path("run"))
    lock.acquire(fail)
    assert f'"pid": {os.getpid()}' in Path("run/lock").read_text()
    lock.mark_ending()
    assert '"ending": true' in Path("run/lock").read_text()


def test_without_the_lock_nothing_is_marked(tmp_path):
    RunLock(tmp_path).mark_ending()
    assert not (tmp_path / "lock").exists()


def test_a_damaged_file_names_nobody(holder):
    holder("0")
    with Path("run/lock").open("r+") as file:
        file.write("\0" * 40)
    with pytest.raises(UserError, match="run: another process has been training there"):
        RunLock(Path("run")).acquire(fail)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"lock cannot be written"):
        RunLock(tmp_path / "file").acquire(fail)

"""Requests to stop, in this process: signals by phase, the time limit and its margin."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from common.console import Console
from training.processes.stopping import StoppedEarly, StopRequest


@pytest.fixture
def stop():
    """Listening; the handlers of before come back, though a request that was made keeps its signals quiet."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}  # nohup ignores SIGHUP
    request = StopRequest(Console(0))
    with request.listening():
        yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_set_up_ends_it(stop, number):
    with pytest.raises(StoppedEarly, match=number.name):
        signal.raise_signal(number)
    assert stop.wanted


def test_no_handler_of_errors_eats_the_end_of_set_up(stop):
    with pytest.raises(StoppedEarly):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")


def test_the_same_request_again_does_not_disturb_the_clean_up(stop):
    with pytest.raises(StoppedEarly):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert stop.reason == "stopped by SIGINT"


def test_in_the_loop_a_signal_is_a_wish(stop):
    calls = []
    stop.when_ending = lambda: calls.append("asked")
    stop.enter_loop()
    assert not stop.wanted
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert stop.wanted
    assert stop.reason == "stopped by SIGTERM"
    assert calls == ["asked"]


def test_a_request_that_was_swallowed_in_set_up_stops_before_the_loop(stop):
    with suppress(BaseException):  # as a library with a bare `except` would
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(StoppedEarly, match="SIGTERM"):
        stop.enter_loop()


def test_another_thread_that_asks_wakes_the_main_thread_in_set_up(stop):
    threading.Timer(0.2, lambda: stop.request("the launcher is gone")).start()
    started = time.monotonic()
    with pytest.raises(StoppedEarly, match="the launcher is gone"):
        time.sleep(30)
    assert time.monotonic() - started < 5


def test_another_thread_that_asks_in_the_loop_disturbs_nothing(stop):
    stop.enter_loop()
    stop.request("the launcher is gone")
    stop.request("something else")
    assert (stop.wanted, stop.reason) == (True, "the launcher is gone")


LAST = """
import os, signal, time
from common.console import Console
from training.processes import stopping
stopping.SAME_REQUEST_SECONDS = 0.0
stop = stopping.StopRequest(Console(0))
with stop.listening():
    stop.enter_loop()
    os.kill(os.getpid(), signal.SIGTERM)
    stop.leave_loop()
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
print("in order")
"""


def test_signals_at_the_end_change_nothing():
    """The launcher signals its processes one after the other, and this one may be the last."""
    done = subprocess.run([sys.executable, "-c", LAST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "in order\n"), done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_the_program_is_imported(processes, train_py, tmp_path, rank):
    """A library takes an hour to load."""
    begun = tmp_path / "begun"
    slow = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(3600)\n"
    (tmp_path / "jsonlines.py").write_text(slow)
    train = processes.start([sys.executable, "-B", train_py], RANK=rank, PYTHONPATH=tmp_path)
    train.wait_until(begun.exists, "the import")
    train.send_signal(signal.SIGINT)
    assert train.wait(timeout=60) == 0
    assert train.output == "stopped by SIGINT: nothing was trained yet, so nothing is lost\n" * (rank == 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12; the child ends at once
def test_a_forked_child_dies_of_its_signal(stop):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert stop.reason is None


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(Console(0)).listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_as_before_where_nothing_was_asked():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(Console(0)).listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# --- the time limit ---------------------------------------------------------------------------------------------------


def test_no_limit():
    request = StopRequest(Console(0))
    request.reserve(1e9)
    assert request.seconds_left is None
    assert not request.wanted


def test_the_limit_counts_from_the_start_of_the_process(monkeypatch):
    born = time.time() - 100
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: born)
    monkeypatch.setattr("training.processes.stopping._IMPORTED", time.monotonic() - 90)
    request = StopRequest(Console(0))
    request.set_time_limit(130)
    assert request.seconds_left == pytest.approx(30, abs=1)
    assert not request.wanted
    request.set_time_limit(99)
    assert request.wanted
    assert request.reason == "time limit reached"


@pytest.mark.parametrize("wrong", [-1e6, 50, 1e6], ids=["in the future", "after the import", "long ago"])
def test_a_start_that_cannot_be_is_not_believed(monkeypatch, wrong):
    born = time.time() - wrong
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: born)
    monkeypatch.setattr("training.processes.stopping._IMPORTED", time.monotonic() - 90)
    request = StopRequest(Console(0))
    request.set_time_limit(120)
    assert request.seconds_left == pytest.approx(30, abs=1)


def test_a_margin_is_kept_for_what_ending_takes():
    request = StopRequest(Console(0))
    request.set_time_limit(time.monotonic() - request_start() + 60)
    assert not request.wanted
    request.reserve(50)
    assert not request.wanted
    request.reserve(70)
    assert request.wanted
    assert request.seconds_left > 50  # the limit itself is still ahead


def request_start():
    probe = StopRequest(Console(0))
    probe.set_time_limit(0)
    return probe.deadline

"""Heartbeats, the processes that send them, and the timeouts of a main thread's work."""

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from training.processes import heartbeat
from training.processes.heartbeat import Heartbeat, ProgressClock, Timeouts, find_process, process_state


def test_a_process_that_lives_dies_and_is_another():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        mine = Heartbeat.of_this_process(0)
        assert find_process(mine).pid == os.getpid()
        assert process_state(replace(mine, namespace="another")) is None
        assert find_process(replace(mine, pid=child.pid)) is None  # the number is in use, by a younger process
        child.kill()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            pass
    assert process_state(replace(mine, pid=child.pid)).gone


def at_an_item(tensor):
    return [sys._getframe()], tensor.item()


def at_work(tensor):
    return [sys._getframe()], tensor + 1


def test_on_a_gpu_a_rank_that_reads_a_number_waits_for_the_others(monkeypatch):
    reading, working = at_an_item(torch.zeros(1))[0], at_work(torch.zeros(1))[0]
    assert not heartbeat._waits_for_gpu(reading)  # on a CPU nothing is left to wait for
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert heartbeat._waits_for_gpu(reading)
    assert not heartbeat._waits_for_gpu(working)


def test_timing_from_the_environment(monkeypatch):
    monkeypatch.setenv("BUFUDU_WATCHDOG", "hung=120 nonsense=3 stuck=much")
    assert Timeouts.from_environment() == Timeouts(hung=120.0)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test lets pass."""
    now = [0.0]
    monkeypatch.setattr("training.processes.heartbeat.time.monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_what_is_done_for_the_first_time_may_take_long(clock):
    progress = ProgressClock(Timeouts())
    progress.tick("training", 0.0)
    assert progress.timeout == 1800
    clock(100)
    progress.tick("training", 0.0)
    assert progress.timeout == 500  # as long as the first was all that is known
    for _ in range(3):
        clock(2)
        progress.tick("training", 0.0)
    assert progress.timeout == 40
    clock(20)
    progress.tick("saving", 0.0)
    assert progress.timeout == 1800
    clock(1)
    progress.tick("training", 0.0)
    assert progress.timeout == 100
    progress.tick("training", 700.0)
    assert progress.timeout == 700

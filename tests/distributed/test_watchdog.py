"""Ranks that die, hang, are stuck or fail; signals; a launcher that is killed. Real processes around a toy loop."""

import base64
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
WORKER = Path(__file__).resolve().parents[1] / "workers" / "worker_watchdog.py"
ROOT = Path(__file__).resolve().parents[2]
QUICK = "beat=0.2 hung=4 stuck=4 first=10 linger=0.5"
GONE_WITHIN = 12  # seconds from a fault, of which a busy machine takes most


class Toy:
    """A toy run of some ranks, each in a session of its own, without a launcher."""

    def __init__(self, processes, folder, port, fault, size, **environment):
        self.folder, self.port, self.size = folder, port, size
        (folder / "hold").touch()
        shared = {
            "WORLD_SIZE": size,
            "LOCAL_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.port,
            "PYTHONPATH": ROOT,
            "BUFUDU_WATCHDOG": QUICK,
        } | environment
        self.ranks = [
            processes.start([sys.executable, WORKER, fault, folder], **shared, RANK=rank, LOCAL_RANK=rank)
            for rank in range(size)
        ]

    def wait_for(self, name, ranks=None):
        for rank in range(self.size) if ranks is None else ranks:
            self.ranks[rank].wait_until(lambda rank=rank: (self.folder / f"{name}{rank}").exists(), f"{name}{rank}")

    def get_going(self):
        """Until every rank has made a step, and the others have heard of it."""
        self.wait_for("step")
        time.sleep(0.5)

    def step(self, rank):
        """How many it has made; it may have been stopped while it wrote that down."""
        file = self.folder / f"step{rank}"
        self.ranks[rank].wait_until(file.read_text, "the number of its step")
        return int(file.read_text() or 0)

    def send(self, number, *ranks):
        for rank in ranks or range(self.size):
            os.kill(self.ranks[rank].pid, number)

    def ends(self, within=GONE_WITHIN):
        """The exit statuses; none of the processes, and nobody at the port, is left."""
        started = time.monotonic()
        for process in self.ranks:
            process.wait(timeout=max(0.1, within - (time.monotonic() - started)))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", self.port))
        return [process.returncode for process in self.ranks]

    @property
    def said(self):
        """The lines on the terminal."""
        return [line for process in self.ranks for line in process.output.splitlines()]

    def log(self, rank):
        return (self.folder / "logs" / f"rank{rank}.log").read_text()


@pytest.fixture
def toy(processes, tmp_path, free_port):
    """Starts a toy run that does not outlive its test."""
    started = []

    def start(fault="none", size=2, **environment):
        started.append(Toy(processes, tmp_path, free_port(), fault, size, **environment))
        return started[-1]

    yield start
    for run in started:
        for process in run.ranks:
            process.stop_group()


# --- a rank dies, hangs, is stuck, fails ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "victim"), [(2, 0), (3, 1)])
def test_a_rank_that_is_killed_is_named_once(toy, size, victim):
    run = toy(size=size)
    run.get_going()
    run.send(signal.SIGKILL, victim)
    statuses = run.ends()
    assert statuses == [-9 if rank == victim else 1 for rank in range(size)]
    [line] = run.said
    assert re.match(
        rf"train\.py: rank {victim} \(process {run.ranks[victim].pid} on \S+\) has died while training", line
    )
    assert f"logs/rank{victim}.log" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_for_ever_is_named_and_killed(toy, victim):
    run = toy()
    run.get_going()
    run.send(signal.SIGSTOP, victim)
    assert run.ends() == [-9 if rank == victim else 1 for rank in range(2)]
    [line] = run.said
    assert re.match(
        rf"train\.py: rank {victim} \(process {run.ranks[victim].pid} on \S+\) gave no "
        r"(sign of life|answer) for \d+ s",
        line,
    )
    assert "its process is stopped" in line


def test_ranks_that_are_stopped_for_a_while_are_waited_for(toy):
    """One, then both for longer than one alone may be: a machine that was put to sleep. SIGTERM to one stops both."""
    run = toy()
    run.get_going()
    for victims, seconds in (((1,), 2.5), ((0, 1), 5)):
        run.send(signal.SIGSTOP, *victims)
        time.sleep(seconds)
        run.send(signal.SIGCONT, *victims)
        before = run.step(1)
        run.ranks[1].wait_until(lambda before=before: run.step(1) > before + 10, "more steps")
    run.send(signal.SIGTERM, 1)
    assert run.ends() == [0, 0], run.said
    [line] = run.said
    assert re.fullmatch(r"saved \d+: stopped by SIGTERM", line)


def test_a_main_thread_that_is_stuck_is_named_with_its_line(toy):
    run, victim = toy("stuck@1"), 1
    run.get_going()
    assert run.ends() == [1, 1]
    [line] = run.said
    assert re.match(
        r"train\.py: nothing has moved for \d+ s, stuck is "
        rf"rank {victim} \(process {run.ranks[victim].pid} on \S+\) while training, in "
        r"tests/workers/worker_watchdog\.py:\d+ \(fault\)",
        line,
    )
    for rank in range(2):
        assert "(most recent call first)" in run.log(rank)


def test_a_rank_that_fails_speaks_for_itself(toy):
    run = toy("raise@1")
    assert run.ends(30) == [1, 1]
    [line] = run.said
    assert line.startswith("train.py: rank 1 failed: ValueError: a planted fault; the traceback is in ")
    assert "ValueError: a planted fault" in run.log(1)


def test_what_only_one_rank_refuses_is_said_by_another(toy):
    run = toy("refuse@1")
    assert run.ends(30) == [2, 2]
    [line] = run.said
    assert re.fullmatch(r"train\.py: rank 1 \(process \d+ on \S+\) has failed: a planted refusal", line)


BEFORE_THE_MEETING = [
    ("early@0", ["a planted refusal"]),
    ("early@1", [r"rank 1 \(process \d+ on \S+\) cannot take part: a planted refusal"]),
    ("early@01", ["a planted refusal"]),
    (
        "early-raise@1",
        [
            r"rank 1 \(process \d+ on \S+\) cannot take part: ValueError: a planted fault",
            "rank 1 failed: ValueError: a planted fault; the traceback is in .*",
        ],
    ),
    (
        "differ@1",
        [r"rank 1 \(process \d+ on \S+\) was not started as rank 0 .*: faulty is True there and False here.*"],
    ),
]


@pytest.mark.parametrize(("fault", "expected"), BEFORE_THE_MEETING)
def test_why_a_rank_does_not_come_is_said_once(toy, fault, expected):
    run = toy(fault)
    assert run.ends() == ([2, 1] if "raise" in fault else [2, 2])
    said = sorted(run.said)
    assert len(said) == len(expected), said
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(f"train\\.py: {pattern}", line)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_the_data_is_prepared(toy, victim):
    run = toy("prepare")
    run.wait_for("holding", [0])
    time.sleep(2)  # rank 1 has found the store meanwhile, or will
    run.send(signal.SIGKILL, victim)
    assert run.ends() == [-9 if rank == victim else 1 for rank in range(2)]
    [line] = run.said
    assert re.match(rf"train\.py: rank {victim} \(process {run.ranks[victim].pid} on \S+\) has died", line)
    assert (run.folder / "cleaned").exists() == (victim == 1)


def test_an_end_in_order_alarms_nobody(toy):
    run = toy(size=3, LAST_STEP=30)
    assert run.ends(40) == [0, 0, 0]
    assert run.said == ["saved 30: finished"]


# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_of_one_moment_are_one_request(toy):
    """Ctrl-C comes from the terminal, and again from the launcher."""
    run = toy(SAVE_SECONDS=1)
    run.get_going()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        run.send(number)
        time.sleep(0.1)
    assert run.ends() == [0, 0]
    [line] = run.said
    assert re.fullmatch(r"saved \d+: stopped by SIGINT", line)


def test_a_second_signal_leaves_at_once(toy):
    run = toy(SAVE_SECONDS=60)
    run.get_going()
    run.send(signal.SIGINT)
    run.wait_for("saving")
    time.sleep(3.2)
    run.send(signal.SIGINT)
    assert run.ends(3) == [1, 1]
    assert run.said == ["stopped at once, by a second signal: the same command continues from the last checkpoint"]


@pytest.mark.parametrize(("when", "asked"), [("prepare", (0, 1)), ("set_up", (1,))])
def test_a_signal_in_set_up_loses_nothing(toy, when, asked):
    run = toy(when)
    run.wait_for("holding", [0] if when == "prepare" else None)
    time.sleep(2)
    run.send(signal.SIGTERM, *asked)
    assert run.ends() == [0, 0], run.said
    [line] = run.said
    who = "stopped by SIGTERM" if 0 in asked else "another process was asked to stop"
    assert line == f"{who}: nothing was trained yet, so nothing is lost"
    assert "Traceback" not in run.log(0) + run.log(1)
    assert when == "set_up" or (run.folder / "cleaned").exists()


# --- the launcher -----------------------------------------------------------------------------------------------------


class Launched:
    """A toy run of two ranks under launch.py, which its `deepspeed` command would have started."""

    def __init__(self, processes, folder, port, fault="none"):
        slots = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
        words = ["-m", "deepspeed.launcher.launch", f"--world_info={slots}", "--node_rank=0", "--no_local_rank"]
        where = ["--master_addr=127.0.0.1", f"--master_port={port}"]
        self.head = processes.start(
            [sys.executable, *words, *where, WORKER, fault, folder], PYTHONPATH=ROOT, BUFUDU_WATCHDOG=QUICK
        )
        self.folder, self.ranks = folder, {}

    def get_going(self):
        steps = [self.folder / f"step{rank}" for rank in range(2)]
        self.head.wait_until(lambda: all(step.exists() for step in steps), "the first step")
        for child in psutil.Process(self.head.pid).children():
            self.ranks[int(child.environ()["RANK"])] = child

    def said(self):
        """Our lines, when every rank is gone."""
        _, alive = psutil.wait_procs([*self.ranks.values()], timeout=GONE_WITHIN)
        assert alive == []
        self.head.wait(timeout=GONE_WITHIN)
        return [line for line in self.head.output.splitlines() if line.startswith(("train.py: ", "saved "))]


@pytest.fixture
def launched_toy(processes, tmp_path, free_port):
    run = Launched(processes, tmp_path, free_port())
    try:
        run.get_going()
        yield run
    finally:
        run.head.stop_group()
        psutil.wait_procs(run.ranks.values(), timeout=5)


def test_a_launcher_that_is_killed_stops_the_run_in_order(launched_toy):
    """launch.py; the `deepspeed` command above it is killed in test_lost_ranks.py."""
    launched_toy.head.kill()
    [line] = launched_toy.said()
    assert re.fullmatch(r"saved \d+: the launcher is gone", line)


def test_a_rank_that_is_killed_is_named_though_the_launcher_asks_the_others_to_stop(launched_toy):
    victim = launched_toy.ranks[1]
    victim.kill()
    [line] = launched_toy.said()
    assert re.match(rf"train\.py: rank 1 \(process {victim.pid} on \S+\) has died", line)
    assert launched_toy.head.returncode


@pytest.mark.parametrize(
    ("fault", "expected"), [case for case in BEFORE_THE_MEETING if case[0] in ("early@1", "differ@1")]
)
def test_the_launcher_does_not_end_rank_0_before_it_has_said_why_another_does_not_come(
    processes, tmp_path, free_port, fault, expected
):
    """It asks all to stop within a second of the end of one."""
    done = processes.finish(Launched(processes, tmp_path, free_port(), fault).head)
    said = [line for line in done.output.splitlines() if line.startswith(("train.py: ", "stopped "))]
    assert (done.status, len(said)) == (2, 1), done.output
    assert re.fullmatch(f"train\\.py: {expected[0]}", said[0])

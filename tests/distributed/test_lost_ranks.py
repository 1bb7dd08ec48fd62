"""One real run that loses its launcher, then is interrupted; and starts of it that come too early."""

import json
import os
import re
import signal
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow
PATIENCE = 400  # seconds for a start, however busy the machine is
SECONDS = 60  # from a fault until everything is gone


class Session:
    """A start of the run, with its processes: the runner (`deepspeed`), launch.py, and the ranks."""

    def __init__(self, launcher, run):
        self.head, self.run = launcher, run
        self.before = self.last_step()

    def last_step(self):
        file = self.run / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def wait_for_steps(self):
        self.head.wait_until(lambda: self.last_step() > self.before + 4, "steps")
        family = psutil.Process(self.head.pid).children(recursive=True)
        self.launch = next(child for child in family if "deepspeed.launcher.launch" in child.cmdline())
        ranks = [child for child in self.launch.children() if "--local_rank=" in " ".join(child.cmdline())]
        self.ranks = {int(child.environ()["RANK"]): child for child in ranks}
        assert sorted(self.ranks) == [0, 1]

    def gone(self):
        """The seconds until nothing is left of it."""
        started = time.monotonic()
        _, alive = psutil.wait_procs([*self.ranks.values(), self.launch], timeout=SECONDS)
        assert alive == []
        self.head.wait(timeout=SECONDS)
        return time.monotonic() - started

    @property
    def said(self):
        return [line for line in self.head.output.splitlines() if line.startswith("train.py: ")]


@pytest.fixture(scope="module")
def sessions(processes, flags, train_py, workplace, free_port):
    """Of one run, on one port, by name of what happened to each."""
    run, port, found = workplace / "runs" / "faults", str(free_port()), {}
    arguments = flags(
        "runs/faults",
        "--max_steps",
        "100000",
        "--save_interval",
        "2",
        "--eval_interval",
        "500",
        "--sample_interval",
        "100000",
        "--log_interval",
        "1",
        "--keep_last",
        "2",
    )

    def start(name):
        head = processes.launcher("--num_gpus", "2", "--master_port", port, arguments=arguments, forked=False)
        found[name] = Session(head, run)
        return found[name]

    try:
        orphaned = start("orphaned")
        orphaned.wait_for_steps()
        os.kill(orphaned.head.pid, signal.SIGKILL)
        interrupted = start("interrupted")  # as a notebook would that kills a cell and runs it again
        orphaned.seconds = orphaned.gone()
        orphaned.summary = json.loads((run / "summary.json").read_text())
        interrupted.before = orphaned.summary["steps"]
        interrupted.wait_for_steps()
        early = processes.start(
            [sys.executable, train_py, *arguments],
            WORLD_SIZE=2,
            RANK=0,
            LOCAL_RANK=0,
            LOCAL_SIZE=2,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        found["too early"] = Session(early, run)
        early.wait(timeout=PATIENCE)
        steps = interrupted.last_step()
        interrupted.head.wait_until(lambda: interrupted.last_step() > steps + 2, "steps after the second start")
        os.killpg(interrupted.head.pid, signal.SIGINT)  # of the terminal; launch.py sends SIGTERM on top of it
        interrupted.seconds = interrupted.gone()
        interrupted.summary = json.loads((run / "summary.json").read_text())
    finally:
        for session in found.values():
            session.head.stop_group()
    return found


def test_a_run_whose_launcher_is_gone_saves_and_ends(sessions):
    session = sessions["orphaned"]
    assert session.summary["reason"] == "the launcher is gone"
    assert session.seconds < 30
    assert session.said == []


def test_a_start_meanwhile_waits_for_it_and_goes_on_from_there_on_the_same_port(sessions):
    output = sessions["interrupted"].head.output
    assert "continuing from runs/faults/checkpoints/step-" in output
    assert f"(step {sessions['orphaned'].summary['steps']:,})" in output


def test_a_second_start_is_refused_and_does_no_harm(sessions):
    early = sessions["too early"]
    pid = sessions["interrupted"].ranks[0].pid
    assert early.head.returncode == 2
    [line] = early.said
    assert re.match(rf"train\.py: runs/faults: process {pid} on \S+ has been training there since ", line)
    assert "Traceback" not in early.head.output


def test_ctrl_c_stops_in_order(sessions):
    session = sessions["interrupted"]
    assert session.summary["reason"] in ("stopped by SIGINT", "stopped by SIGTERM")  # launch.py's may come first
    assert session.summary["steps"] == session.last_step()
    assert (session.run / "checkpoints" / f"step-{session.summary['steps']:08d}").is_dir()
    assert session.said == []
    assert session.seconds < 30

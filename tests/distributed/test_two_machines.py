"""Two machines, played by namespaces: a real run over ssh and pdsh, and toy ranks whose link is cut."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stress.machines.two_machines import ADDRESSES, TwoMachines, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=f"two machines: {missing()}")]
ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "workers" / "worker_watchdog.py"
QUICK = "beat=0.2 hung=8 stuck=30 linger=0.5 meet=60"
GONE_WITHIN = 25  # seconds from a fault, of which a busy machine takes most
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(scope="module")
def two():
    machines = TwoMachines()
    yield machines
    machines.close()


# --- the real launcher ------------------------------------------------------------------------------------------------


class Start:
    """`deepspeed --hostfile ...` on mA."""

    def __init__(self, two, workplace, arguments):
        (workplace / "machines").write_text("mA slots=1\nmB slots=1\n")
        self.two, self.file, self.metrics = two, workplace / "machines.log", workplace / "runs/machines/metrics.jsonl"
        beside = Path(sys.executable).with_name("deepspeed")
        self.process = two.popen(
            [sys.executable, beside, "--hostfile", "machines", ROOT / "train.py", *arguments],
            workplace,
            self.file,
            PATH=PATH,
            OMP_NUM_THREADS="1",
            DS_ACCELERATOR="cpu",
        )

    @property
    def output(self):
        return self.file.read_text(errors="replace")

    def last_step(self):
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.fixture(scope="module")
def interrupted(two, workplace, flags):
    """A start that is interrupted in the middle of a run."""
    first = Start(two, workplace, flags("runs/machines"))
    deadline = time.monotonic() + 400
    while first.last_step() < 2:
        assert first.process.poll() is None, first.output
        assert time.monotonic() < deadline, first.output
        time.sleep(0.01)
    two.cut()  # so that it does not come to its end before it is interrupted
    first.steps = first.last_step()
    two.signal_group(first.process, signal.SIGINT)
    time.sleep(1)
    two.restore()
    first.status, first.said = first.process.wait(100), first.output
    first.free = two.seconds_until_free(GONE_WITHIN)
    yield first
    two.sweep()


def test_ctrl_c_frees_both_machines(interrupted):
    assert interrupted.steps < 12
    assert interrupted.status == 1, interrupted.said
    assert interrupted.free is not None
    assert "mA: met: mA and mB" in interrupted.said


def test_two_machines_train_the_weights_of_one(interrupted, finished_run, workplace, processes, flags, train_py):
    """One machine brings the run to its end."""
    done = processes.ranks(2, [train_py, *flags("runs/machines")])
    assert done.status == 0, done.output
    assert "continuing from runs/machines/checkpoints/step-" in done.output
    ours, expected = (load_file(run / "model/model.safetensors") for run in (workplace / "runs/machines", finished_run))
    assert ours.keys() == expected.keys()
    assert all(ours[name].equal(expected[name]) for name in ours)


# --- toy ranks, without a launcher ------------------------------------------------------------------------------------


class Ranks:
    """Rank 0 on mA and rank 1 on mB, of worker_watchdog.py."""

    def __init__(self, two, folder, **environment):
        self.two, self.folder = two, folder
        (folder / "hold").touch()
        variables = {
            "WORLD_SIZE": 2,
            "LOCAL_SIZE": 1,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": 29500,
            "OMP_NUM_THREADS": 1,
            "PYTHONPATH": ROOT,
            "BUFUDU_WATCHDOG": QUICK,
            **environment,
        }
        self.processes = {rank: self._start(rank, variables | {"RANK": rank}) for rank in (0, 1)}

    def _start(self, rank, variables):
        words = [f"{name}={value}" for name, value in variables.items()]
        command = self.two.machines[rank].command("env", *words, sys.executable, WORKER, "none", self.folder)
        with (self.folder / f"output{rank}").open("wb") as file:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)

    def wait_until(self, true, seconds=120):
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def step(self, rank):
        file = self.folder / f"step{rank}"
        return int(file.read_text() or 0) if file.is_file() else 0

    def get_going(self):
        self.wait_until(lambda: self.step(0) > 5 and self.step(1) > 5)
        time.sleep(0.5)

    def ends(self, *ranks, within=GONE_WITHIN):
        """The exit statuses of these ranks, or of all."""
        deadline = time.monotonic() + within
        return [self.processes[rank].wait(max(0.1, deadline - time.monotonic())) for rank in ranks or self.processes]

    @property
    def said(self):
        files = [self.folder / f"output{rank}" for rank in self.processes]
        return [line for file in files for line in file.read_text(errors="replace").splitlines()]


@pytest.fixture
def ranks(two, tmp_path):
    yield lambda **environment: Ranks(two, tmp_path, **environment)
    two.sweep()


def test_a_cut_of_the_link_is_survived_and_then_a_kill_is_named(two, ranks):
    """The cut is nearly as long as a rank may be silent."""
    run = ranks()
    run.get_going()
    two.cut()
    time.sleep(6)
    two.restore()
    before = run.step(0)
    run.wait_until(lambda: run.step(0) > before + 10)
    two.b.send(signal.SIGKILL, "rank1")
    assert run.ends(0) == [1]
    [line] = [line for line in run.said if line.startswith("train.py: ")]
    assert re.match(r"train\.py: rank 1 \(process \d+ on mB\) gave no sign of life for \d+ s while training", line)


def test_sigterm_to_either_rank_stops_both(two, ranks):
    run = ranks()
    run.get_going()
    two.b.send(signal.SIGTERM, "rank1")
    assert run.ends() == [0, 0]
    assert re.fullmatch(r"saved \d+: stopped by SIGTERM", run.said[-1])


def test_a_rank_that_does_not_come_is_waited_for_and_a_signal_ends_it(two, ranks):
    """The link is cut, so that whatever waits in a socket waits for good."""
    two.cut()
    run = ranks(BUFUDU_WATCHDOG=QUICK.replace("meet=60", "meet=8"))
    run.wait_until(lambda: any("waiting for rank 0 at 10.99.0.1:29500" in line for line in run.said))
    two.b.send(signal.SIGTERM, "rank1")
    assert run.ends(1, within=5) == [0]
    assert run.ends(0) == [2]
    assert "waiting for rank 1, " in run.said[0]
    assert "train.py: rank 1 did not come within 8 s" in "\n".join(run.said)


def test_a_machine_that_is_switched_off_is_named(tmp_path):
    two = TwoMachines()
    try:
        run = Ranks(two, tmp_path)
        run.get_going()
        two.cut()
        two.b.power_off()
        assert run.ends(0) == [1]
        assert two.training() == []
        [line] = [line for line in run.said if line.startswith("train.py: ")]
        assert "rank 1 (process " in line
        assert "on mB) gave no sign of life" in line
    finally:
        two.close()

"""What is wrong with two machines before a start, and what is done to a run on them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

from stress.chaos import compare
from stress.chaos.session import ROOT, free_port
from stress.chaos.workplace import Pace, Workplace
from stress.machines.launch import Launch
from stress.machines.two_machines import TwoMachines

SHORT = Pace(steps=10, save=5, evaluate=5, sample=10)
# what srun sets for its two tasks; the command is that of the arguments
SRUN = r"""
for n in 0 1; do
    ssh $([ $n = 0 ] && echo mA || echo mB) "cd $PWD; env SLURM_PROCID=$n SLURM_NODEID=$n SLURM_LOCALID=0 \
        SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 'SLURM_STEP_TASKS_PER_NODE=1(x2)' MASTER_ADDR=10.99.0.1 \
        PYTHONPATH=$PYTHONPATH DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 BUFUDU_WATCHDOG=$BUFUDU_WATCHDOG $*" &
    pids="$pids $!"
done
status=0
for pid in $pids; do wait $pid || status=$?; done
exit $status
"""


# --- what is wrong before the start -----------------------------------------------------------------------------------


def other_corpus(two: TwoMachines, work: Workplace) -> None:
    """Let mB see a corpus of the same text with another manifest."""
    other = work.folder / "other-corpus"
    if not other.is_dir():
        shutil.copytree(work.corpus, other)
        manifest = other / "manifest.json"
        manifest.write_text(
            manifest.read_text(encoding="utf-8").replace('"created"', '"made"') + "\n", encoding="utf-8"
        )
    two.b.mount(other, work.corpus)


def over(file: Path, old: str, new: str) -> Callable[[TwoMachines, Workplace], None]:
    """Return what lets mB see the file with another text in it."""

    def mount(two: TwoMachines, work: Workplace) -> None:
        copy = work.folder / f"other-{file.name}"
        copy.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        two.b.mount(copy, file)

    return mount


def empty_over(path_of: Callable[[Workplace], Path]) -> Callable[[TwoMachines, Workplace], None]:
    """Return what lets mB see an empty folder at a path of the workplace."""

    def mount(two: TwoMachines, work: Workplace) -> None:
        empty = work.folder / "empty"
        empty.mkdir(exist_ok=True)
        two.b.mount(empty, path_of(work))

    return mount


def own_runs(two: TwoMachines, work: Workplace) -> None:
    """Give mB a folder of runs of its own, with the lock of an earlier run in it."""
    own = work.folder / "runs-of-mB"
    (own / "machines").mkdir(parents=True, exist_ok=True)
    (own / "machines" / "lock").write_text('{"host": "mB", "pid": 1}\n', encoding="utf-8")
    (work.folder / "runs").mkdir(exist_ok=True)
    two.b.mount(own, work.folder / "runs")


def docker(two: TwoMachines, work: Workplace) -> None:
    """Give both machines the bridge that docker makes, with the same address."""
    for machine in two.machines:
        machine.run("ip", "link", "add", "name", "docker0", "type", "bridge")
        machine.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
        machine.run("ip", "link", "set", "docker0", "up")


def no_host_key(two: TwoMachines, work: Workplace) -> None:
    """Let mA not know the host key of mB."""
    known = two.folder / "ssh" / "known_hosts"
    known.write_text(known.read_text().replace("mA,mB,10.99.0.*", "mA,10.99.0.1"))


def listener(two: TwoMachines, work: Workplace) -> None:
    """Start another program on mA that listens at the port of the run."""
    subprocess.Popen(
        two.a.command(sys.executable, "-m", "http.server", str(work.port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)


def stale(seed: str) -> Callable[[TwoMachines, Workplace], None]:
    """Return what leaves a rank 1 of an earlier start on mB, with this seed."""

    def start(two: TwoMachines, work: Workplace) -> None:
        flags = [*work.flags(work.folder / "runs" / "machines", pace=SHORT), "--seed", seed]
        place = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 1, "MASTER_ADDR": "10.99.0.1"}
        variables = [f"{name}={value}" for name, value in {**place, "MASTER_PORT": work.port}.items()]
        script = two.b.command("env", "-C", work.folder, *variables, sys.executable, ROOT / "train.py", *flags)
        with (work.folder / "logs" / "stale.log").open("wb") as log:
            subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        time.sleep(20)

    return start


# --- what is done to it -----------------------------------------------------------------------------------------------


def in_steps(launch: Launch, run_folder: Path) -> bool:
    """Wait until the run trains; return whether it does."""
    return launch.wait_until(lambda: launch.announced is not None and compare.last_step(run_folder) >= 3)


def kill(rank: int, number: int = SIGKILL) -> Callable[[TwoMachines, Launch, Path], None]:
    """Return what sends a signal to a rank that trains."""

    def kill(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        in_steps(launch, run_folder)
        two.machines[rank].send(number, f"rank{rank}")

    return kill


def kill_in_set_up(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Kill rank 1 as soon as its process is there."""
    launch.wait_until(lambda: two.b.processes("rank1"))
    two.b.send(SIGKILL, "rank1")


def interrupt(number: int = SIGINT) -> Callable[[TwoMachines, Launch, Path], None]:
    """Return what signals the process group of the command while the run trains, as Ctrl-C does."""

    def interrupt(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        in_steps(launch, run_folder)
        launch.interrupt(number)

    return interrupt


def stop_deepspeed(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Send SIGTERM to the `deepspeed` command alone while the run trains."""
    in_steps(launch, run_folder)
    launch.signal_runner(SIGTERM)


def restart_at_once(two: TwoMachines, launch: Launch, run_folder: Path) -> Launch:
    """Press Ctrl-C while rank 1 is waited for, and return the same command, started at the prompt."""
    interrupt_the_rendezvous(two, launch, run_folder)
    launch.wait_end()
    two.restore()
    return launch.again()


def interrupt_beside_another(two: TwoMachines, launch: Launch, run_folder: Path) -> Launch:
    """Return the other run, which Ctrl-C reaches too."""
    other = launch.again(port=free_port(), output=run_folder.with_name("beside"))
    in_steps(launch, run_folder)
    in_steps(other, run_folder.with_name("beside"))
    launch.interrupt()
    return other


def interrupt_the_rendezvous(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Press Ctrl-C while rank 1 is waited for."""
    launch.wait_until(lambda: "waiting for rank 1" in launch.output)
    launch.interrupt()


def kill_head_then_stop(two: TwoMachines, launch: Launch, run_folder: Path, *, pdsh: bool = False) -> None:
    """Kill the command (or pdsh), without which the run goes on, and end all by SIGTERM to one rank."""
    in_steps(launch, run_folder)
    launch.signal_runner(pdsh=pdsh)
    time.sleep(5)
    two.b.send(SIGTERM, "rank1")


def kill_pdsh_then_stop(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Kill pdsh, and end the run by SIGTERM to rank 1."""
    kill_head_then_stop(two, launch, run_folder, pdsh=True)


def hang_up_then_stop(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Close the terminal, and end the run by SIGTERM to rank 1."""
    interrupt(SIGHUP)(two, launch, run_folder)
    time.sleep(5)
    two.b.send(SIGTERM, "rank1")


def cut(seconds: float) -> Callable[[TwoMachines, Launch, Path], None]:
    """Return what cuts the link for so many seconds while the run trains; 0 is for good."""

    def cut(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        in_steps(launch, run_folder)
        two.cut()
        time.sleep(seconds)
        if seconds:
            two.restore()

    return cut


def power_off(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    """Cut the link while the run trains, and switch mB off."""
    in_steps(launch, run_folder)
    two.cut()
    two.b.power_off()

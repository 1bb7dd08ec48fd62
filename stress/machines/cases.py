"""What goes wrong with two machines, over real ssh and pdsh: what is said, and how soon both machines are free."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from stress.chaos.record import Journal, Trial
from stress.chaos.session import PATIENCE, ROOT
from stress.chaos.workplace import ENDLESS, Pace, Workplace
from stress.machines.deeds import (
    SHORT,
    SRUN,
    cut,
    docker,
    empty_over,
    hang_up_then_stop,
    interrupt,
    interrupt_beside_another,
    interrupt_the_rendezvous,
    kill,
    kill_head_then_stop,
    kill_in_set_up,
    kill_pdsh_then_stop,
    listener,
    no_host_key,
    other_corpus,
    over,
    own_runs,
    power_off,
    restart_at_once,
    stale,
    stop_deepspeed,
)
from stress.machines.launch import BOTH, Launch
from stress.machines.two_machines import TwoMachines, missing

CATEGORY = "two machines"
STOP_LIMIT = 180.0  # long: the machine may have other work


@dataclass
class Case:
    """Something that is wrong, or is done to a run, and what must follow."""

    name: str
    says: str = ""
    """A part of a line that the user must read; empty where the run goes on."""
    status: tuple[int | None, ...] = (2,)
    launcher: tuple[object, ...] = ()
    hosts: str = BOTH
    before: Callable[[TwoMachines, Workplace], None] = lambda two, work: None
    then: Callable[[TwoMachines, Launch, Path], Launch | None] = lambda two, launch, run: None
    """What is done to the run; returns another start, if that is the one to look at."""
    starter: tuple[object, ...] = ()
    limit: float = STOP_LIMIT
    pace: Pace = SHORT
    finishes: bool = False
    """Whether the run must come to its end as if nothing had been."""


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """Every case of `cases`, on two machines made new for each."""
    if why := missing():
        print(f"two machines: left out: {why}")
        return
    for case in cases():
        journal.add(attempt(work, case))


@contextmanager
def machines() -> Iterator[TwoMachines]:
    """Yield two machines, and end them with all their processes."""
    two = TwoMachines()
    try:
        yield two
    finally:
        two.sweep()
        two.close()


def attempt(work: Workplace, case: Case) -> Trial:
    """Start a run for the case, do to it what the case asks for, and return what became of it."""
    trial, run_folder = Trial(CATEGORY, case.name), work.fresh("machines")
    flags = work.flags(run_folder, pace=case.pace)
    with machines() as two:
        case.before(two, work)
        launch = Launch(two, work, flags, "case", *case.launcher, hosts=case.hosts, starter=case.starter)
        begun = time.monotonic()
        launch = case.then(two, launch, run_folder) or launch
        done = time.monotonic() if case.then.__name__ != "<lambda>" else begun
        status = launch.wait_end(case.limit)
        trial.seconds_to_stop = time.monotonic() - done if two.seconds_until_free(case.limit) is not None else None
        left = [f"{process.role} on {name}" for name, process in two.training()]
        trial.facts = {"log": launch.log.name, "exit status": status, "orphans": ", ".join(left) or "none"}
        trial.expect(not left, f"left: {', '.join(left)}")
        trial.expect(status in case.status, f"exit status {status}, not {case.status}: {launch.output[-400:]}")
        said = [line for line in launch.said if case.says and case.says in line]
        trial.facts["said"] = said[-1][:400] if said else None
        trial.expect(said or not case.says, f"no line says {case.says!r}: {launch.output[-600:]}")
        if case.finishes:
            summary = run_folder / "summary.json"
            reason = json.loads(summary.read_text())["reason"] if summary.is_file() else "no summary"
            trial.expect(reason == "finished", f"the run did not finish: {reason}: {launch.output[-600:]}")
    return trial


def cases() -> list[Case]:
    """Return all cases."""
    return [*_settings(), *_missing_ranks(), *_addresses(), *_other_launchers(), *_under_way()]


def _settings() -> list[Case]:
    """Return the cases in which the ranks were not started alike."""
    config, module = ROOT / "ds_configs" / "t4x2.json", ROOT / "training" / "rollback.py"
    return [
        Case("nothing wrong", "met: mA and mB", (0,), finishes=True, limit=PATIENCE),
        Case("another corpus on mB", "rank 1 on mB differs from rank 0 on mA: manifest.json is", before=other_corpus),
        Case(
            "another JSON on mB",
            "JSON.gradient_clipping is 0.5 there and 1.0 here",
            before=over(config, '"gradient_clipping": 1.0', '"gradient_clipping": 0.5'),
        ),
        Case(
            "another version of the code on mB",
            "check out the same commit on both",
            before=over(module, "import", "import  "),
        ),
        Case(
            "a stale rank with another seed",
            "refused; still waiting",
            (0,),
            before=stale("7"),
            finishes=True,
            limit=PATIENCE,
        ),
        Case("a stale rank with the same settings", "met: mA", (0,), before=stale("42"), finishes=True, limit=PATIENCE),
    ]


def _missing_ranks() -> list[Case]:
    """Return the cases in which a rank does not come."""
    return [
        Case("an unknown host", "waiting for rank 1 (mX)", (2, 255), hosts="mA slots=1\nmX slots=1\n", limit=PATIENCE),
        Case(
            "an unreachable host",
            "waiting for rank 1 (mB)",
            (2, 255),
            before=lambda two, work: two.cut(),
            limit=PATIENCE,
        ),
        Case("an unknown host key", "Host key verification failed", (2, 255), before=no_host_key, limit=PATIENCE),
        Case(
            "no environment on mB",
            "waiting for rank 1 (mB)",
            (2, 127),
            before=empty_over(lambda work: Path(sys.executable).parent),
            limit=PATIENCE,
        ),
        Case("no checkout on mB", "waiting for rank 1 (mB)", before=empty_over(lambda work: ROOT), limit=PATIENCE),
        Case("no data on mB", "manifest.json is missing there", before=empty_over(lambda work: work.corpus)),
        Case("rank 1 killed in set-up", "did not come within", (2, 247, 137), then=kill_in_set_up, limit=PATIENCE),
        Case(
            "Ctrl-C while rank 1 is waited for",
            "",  # pdsh passes nothing on any more
            (1,),
            before=lambda two, work: two.cut(),
            then=interrupt_the_rendezvous,
        ),
        Case(
            "Ctrl-C while rank 1 is waited for, started again at once",
            "met: mA and mB",
            (0,),
            before=lambda two, work: two.cut(),
            then=restart_at_once,
            finishes=True,
            limit=PATIENCE,
        ),
    ]


def _other_launchers() -> list[Case]:
    """Return mpirun, alone and from `deepspeed`, and the variables of srun."""
    variables = ("PYTHONPATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "BUFUDU_WATCHDOG", "MASTER_ADDR=10.99.0.1")
    mpirun = ["mpirun", "-n", 2, "-host", "mA:1,mB:1", *(word for name in variables for word in ("-x", name))]
    done = {"says": "met: mA and mB", "status": (0,), "finishes": True, "limit": PATIENCE}
    return [
        Case("mpirun", starter=(*mpirun, sys.executable), **done),
        Case("srun (its variables, over ssh)", starter=("bash", "-c", SRUN, "srun", sys.executable), **done),
        Case("deepspeed --launcher openmpi", "MASTER_ADDR is not set", launcher=("--launcher", "openmpi")),
        Case(
            "deepspeed --launcher openmpi --launcher_args",
            launcher=("--launcher", "openmpi", "--launcher_args", "-x MASTER_ADDR=10.99.0.1"),
            **done,
        ),
    ]


def _addresses() -> list[Case]:
    """Return the cases of wrong addresses, ports and hostfiles."""
    return [
        Case(
            "docker's bridge as the address",
            "start with deepspeed --master_addr 10.99.0.1",
            launcher=("--master_addr", "172.17.0.1"),
            before=docker,
        ),
        Case(
            "a master address of nobody",
            "start with deepspeed --master_addr 10.99.0.1",
            launcher=("--master_addr", "10.99.0.77"),
        ),
        Case(
            "slots=0 on the first machine",
            "start with deepspeed --master_addr 10.99.0.2",
            hosts="mA slots=0\nmB slots=2\n",
        ),
        Case("--include mB alone", "--force_multi", launcher=("--include", "mB"), hosts="mA slots=2\nmB slots=2\n"),
        Case("another program at the port", "is in use, perhaps by another run", before=listener),
        Case("runs/ not shared, an old lock in it", "is not the folder of that name", before=own_runs),
        Case("slots=0 on the second machine", "no slots", (0,), hosts="mA slots=2\nmB slots=0\n", finishes=True),
        Case("a machine named twice", "multiple entries for mA", (1,), hosts="mA slots=1\nmA slots=1\n"),
    ]


def _under_way() -> list[Case]:
    """Return what is done to a run in its steps."""
    endless = {"pace": ENDLESS, "limit": STOP_LIMIT}
    long = {
        "pace": Pace(steps=400, save=50, evaluate=200, sample=400),
        "limit": 900.0,
        "status": (0,),
        "finishes": True,
    }
    return [
        Case("rank 0 killed", "rank 0 (process", (1, 247), then=kill(0), **endless),
        Case("rank 1 killed", "rank 1 (process", (1, 247), then=kill(1), **endless),
        Case("mB switched off", "rank 1 (process", (1, 255), then=power_off, **endless),
        Case("the link cut for good", "rank 1 (process", (1, 255), then=cut(0), **endless),
        Case("Ctrl-C", "", (1,), then=interrupt(), **endless),
        Case("SIGTERM to the deepspeed command", "", (1, -15, 143), then=stop_deepspeed, **endless),
        Case("Ctrl-C of another run", "", (0, 1), then=interrupt_beside_another, **endless),
        Case("SIGTERM to rank 1", "stopped by SIGTERM", (0,), then=kill(1, SIGTERM), **endless),
        Case("the terminal closed, rank 1 stopped", "", (-1, 1, 129), then=hang_up_then_stop, **endless),
        Case("the deepspeed command killed, rank 1 stopped", "", (-9, 137), then=kill_head_then_stop, **endless),
        Case("pdsh killed, rank 1 stopped", "", (-9, 0, 1, 137), then=kill_pdsh_then_stop, **endless),
        *(Case(f"the link cut for {s} s", "", then=cut(s), **long) for s in (10, 20, 30, 36)),
    ]

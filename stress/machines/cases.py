"""What goes wrong with two machines, over real ssh and pdsh: what is said, and how soon both machines are free."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.session import ROOT
from stress.chaos.workplace import ENDLESS, Pace, Workplace
from stress.machines.launch import BOTH, PATIENCE, Launch
from stress.machines.two_machines import TwoMachines, missing

CATEGORY = "two machines"
STOP_LIMIT = 180.0  # long: the machine may have other work


@dataclass
class Case:
    """Something that is wrong, or is done to a run, and what must follow."""

    name: str
    says: str
    """A part of a line that the user must read; empty where the run goes on."""
    status: tuple[int | None, ...] = (2,)
    launcher: tuple[object, ...] = ()
    hosts: str = BOTH
    before: Callable[[TwoMachines, Workplace], None] = lambda two, work: None
    then: Callable[[TwoMachines, Launch, Path], None] = lambda two, launch, run: None
    limit: float = STOP_LIMIT
    pace: Pace = field(default_factory=lambda: Pace(steps=10, save=5, evaluate=5, sample=10))
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
    two = TwoMachines()
    try:
        yield two
    finally:
        two.sweep()
        two.close()


def attempt(work: Workplace, case: Case) -> Trial:
    trial, run_folder = Trial(CATEGORY, case.name), work.fresh("machines")
    flags = work.flags(run_folder, pace=case.pace)
    with machines() as two:
        case.before(two, work)
        launch = Launch(two, work, flags, "case", *case.launcher, hosts=case.hosts)
        begun = time.monotonic()
        case.then(two, launch, run_folder)
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


# --- what is wrong before the start -----------------------------------------------------------------------------------


def _other_corpus(two: TwoMachines, work: Workplace) -> None:
    other = work.folder / "other-corpus"
    if not other.is_dir():
        shutil.copytree(work.corpus, other)
        manifest = other / "manifest.json"
        manifest.write_text(
            manifest.read_text(encoding="utf-8").replace('"created"', '"made"') + "\n", encoding="utf-8"
        )
    two.b.mount(other, work.corpus)


def _over(file: Path, old: str, new: str) -> Callable[[TwoMachines, Workplace], None]:
    """Return what lets mB see the file with another text in it."""

    def mount(two: TwoMachines, work: Workplace) -> None:
        copy = work.folder / f"other-{file.name}"
        copy.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        two.b.mount(copy, file)

    return mount


def _empty_over(path_of: Callable[[Workplace], Path]) -> Callable[[TwoMachines, Workplace], None]:
    def mount(two: TwoMachines, work: Workplace) -> None:
        empty = work.folder / "empty"
        empty.mkdir(exist_ok=True)
        two.b.mount(empty, path_of(work))

    return mount


def _own_runs(two: TwoMachines, work: Workplace) -> None:
    """A folder of runs on each machine, with the lock of an earlier run in it."""
    own = work.folder / "runs-of-mB"
    (own / "machines").mkdir(parents=True, exist_ok=True)
    (own / "machines" / "lock").write_text('{"host": "mB", "pid": 1}\n', encoding="utf-8")
    (work.folder / "runs").mkdir(exist_ok=True)
    two.b.mount(own, work.folder / "runs")


def _docker(two: TwoMachines, work: Workplace) -> None:
    for machine in two.machines:
        machine.run("ip", "link", "add", "name", "docker0", "type", "bridge")
        machine.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
        machine.run("ip", "link", "set", "docker0", "up")


def _no_host_key(two: TwoMachines, work: Workplace) -> None:
    known = two.folder / "ssh" / "known_hosts"
    known.write_text(known.read_text().replace("mA,mB,10.99.0.*", "mA,10.99.0.1"))


def _listener(two: TwoMachines, work: Workplace) -> None:
    subprocess.Popen(
        two.a.command(sys.executable, "-m", "http.server", str(work.port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1)


def _stale(seed: str) -> Callable[[TwoMachines, Workplace], None]:
    """Return what leaves a rank 1 of an earlier start on mB, with this seed."""

    def start(two: TwoMachines, work: Workplace) -> None:
        flags = [*work.flags(work.folder / "runs" / "machines", pace=Case("", "").pace), "--seed", seed]
        place = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 1, "MASTER_ADDR": "10.99.0.1"}
        variables = [f"{name}={value}" for name, value in {**place, "MASTER_PORT": work.port}.items()]
        script = two.b.command("env", "-C", work.folder, *variables, sys.executable, ROOT / "train.py", *flags)
        with (work.folder / "logs" / "stale.log").open("wb") as log:
            subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        time.sleep(20)

    return start


# --- what is done to it -----------------------------------------------------------------------------------------------


def _in_steps(launch: Launch, run_folder: Path) -> bool:
    return launch.wait_until(lambda: launch.announced is not None and compare.last_step(run_folder) >= 3)


def _kill(rank: int, number: int = SIGKILL) -> Callable[[TwoMachines, Launch, Path], None]:
    def kill(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        _in_steps(launch, run_folder)
        two.machines[rank].send(number, f"rank{rank}")

    return kill


def _kill_in_set_up(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    launch.wait_until(lambda: two.b.processes("rank1"))
    two.b.send(SIGKILL, "rank1")


def _interrupt(number: int = SIGINT) -> Callable[[TwoMachines, Launch, Path], None]:
    def interrupt(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        _in_steps(launch, run_folder)
        launch.interrupt(number)

    return interrupt


def _interrupt_the_meeting(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    launch.wait_until(lambda: "waiting for rank 1" in launch.output)
    launch.interrupt()


def _kill_head_then_stop(two: TwoMachines, launch: Launch, run_folder: Path, *, pdsh: bool = False) -> None:
    """Without the command or pdsh the run goes on; a SIGTERM to one rank ends all."""
    _in_steps(launch, run_folder)
    launch.kill_runner(pdsh=pdsh)
    time.sleep(5)
    two.b.send(SIGTERM, "rank1")


def _kill_pdsh_then_stop(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    _kill_head_then_stop(two, launch, run_folder, pdsh=True)


def _hang_up_then_stop(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    _interrupt(SIGHUP)(two, launch, run_folder)
    time.sleep(5)
    two.b.send(SIGTERM, "rank1")


def _cut(seconds: float) -> Callable[[TwoMachines, Launch, Path], None]:
    def cut(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
        _in_steps(launch, run_folder)
        two.cut()
        time.sleep(seconds)
        if seconds:
            two.restore()

    return cut


def _power_off(two: TwoMachines, launch: Launch, run_folder: Path) -> None:
    _in_steps(launch, run_folder)
    two.cut()
    two.b.power_off()


def cases() -> list[Case]:
    """Return all cases."""
    return [*_settings(), *_missing_ranks(), *_addresses(), *_under_way()]


def _settings() -> list[Case]:
    """Return the cases in which the ranks were not started alike."""
    config, module = ROOT / "ds_configs" / "t4x2.json", ROOT / "training" / "rollback.py"
    return [
        Case("nothing wrong", "met: mA and mB", (0,), finishes=True, limit=PATIENCE),
        Case("another corpus on mB", "rank 1 on mB differs from rank 0 on mA: manifest.json is", before=_other_corpus),
        Case(
            "another JSON on mB",
            "JSON.gradient_clipping is 0.5 there and 1.0 here",
            before=_over(config, '"gradient_clipping": 1.0', '"gradient_clipping": 0.5'),
        ),
        Case("another version of the code on mB", "the code in", before=_over(module, "import", "import  ")),
        Case("a stale rank with another seed", "turned away", (0,), before=_stale("7"), finishes=True, limit=PATIENCE),
        Case(
            "a stale rank with the same settings", "met: mA", (0,), before=_stale("42"), finishes=True, limit=PATIENCE
        ),
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
        Case("an unknown host key", "Host key verification failed", (2, 255), before=_no_host_key, limit=PATIENCE),
        Case(
            "no environment on mB",
            "waiting for rank 1 (mB)",
            (2, 127),
            before=_empty_over(lambda work: Path(sys.executable).parent),
            limit=PATIENCE,
        ),
        Case("no checkout on mB", "waiting for rank 1 (mB)", before=_empty_over(lambda work: ROOT), limit=PATIENCE),
        Case("no data on mB", "no manifest.json here", before=_empty_over(lambda work: work.corpus)),
        Case("rank 1 killed in set-up", "did not come within", (2, 247, 137), then=_kill_in_set_up, limit=PATIENCE),
        Case(
            "Ctrl-C while rank 1 is waited for",
            "nothing was trained yet",
            (1,),
            before=lambda two, work: two.cut(),
            then=_interrupt_the_meeting,
        ),
    ]


def _addresses() -> list[Case]:
    """Return the cases of wrong addresses, ports and hostfiles."""
    return [
        Case(
            "docker's bridge as the address",
            "start with deepspeed --master_addr 10.99.0.1",
            launcher=("--master_addr", "172.17.0.1"),
            before=_docker,
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
        Case("another program at the port", "is in use, perhaps by another run", before=_listener),
        Case("runs/ not shared, an old lock in it", "is not the folder of that name", before=_own_runs),
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
        Case("rank 0 killed", "rank 0 (process", (1, 247), then=_kill(0), **endless),
        Case("rank 1 killed", "rank 1 (process", (1, 247), then=_kill(1), **endless),
        Case("mB switched off", "rank 1 (process", (1, 255), then=_power_off, **endless),
        Case("the link cut for good", "rank 1 (process", (1, 255), then=_cut(0), **endless),
        Case("Ctrl-C", "", (1,), then=_interrupt(), **endless),
        Case("SIGTERM to rank 1", "stopped by SIGTERM", (0,), then=_kill(1, SIGTERM), **endless),
        Case("the terminal closed, rank 1 stopped", "", (-1, 1, 129), then=_hang_up_then_stop, **endless),
        Case("the deepspeed command killed, rank 1 stopped", "", (-9, 137), then=_kill_head_then_stop, **endless),
        Case("pdsh killed, rank 1 stopped", "", (-9, 0, 1, 137), then=_kill_pdsh_then_stop, **endless),
        *(Case(f"the link cut for {s} s", "", then=_cut(s), **long) for s in (10, 20, 30, 36)),
    ]

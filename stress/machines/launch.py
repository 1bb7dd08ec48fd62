"""One start of the real launcher on two machines, watched and signalled from outside."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import SIGINT, SIGKILL

from stress.chaos.session import ROOT, Started
from stress.chaos.workplace import Workplace
from stress.machines.two_machines import TwoMachines

BOTH = "mA slots=1\nmB slots=1\n"
# longer than a cut that the run survives: an ssh that gives up stops it
KEEP_ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o ConnectTimeout=10 -o BatchMode=yes"
MEET = 45.0  # seconds that a rank is waited for, here; 300 otherwise


class Launch(Started):
    """`deepspeed --hostfile ... train.py FLAGS`, started on mA; or `starter`, another command, in its place."""

    def __init__(
        self,
        two: TwoMachines,
        work: Workplace,
        flags: list[object],
        name: str,
        *launcher: object,
        hosts: str = BOTH,
        starter: Sequence[object] = (),
        port: int | None = None,
    ) -> None:
        self.two, self.work, self.flags = two, work, flags
        work.sessions += 1
        self.log = work.folder / "logs" / f"{work.sessions:03d}-{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        hostfile = work.folder / f"hostfile-{work.sessions}"
        hostfile.write_text(hosts, encoding="utf-8")
        variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "BUFUDU_WATCHDOG": f"meet={MEET}"}
        (work.folder / ".deepspeed_env").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
        deepspeed = [sys.executable, Path(sys.executable).with_name("deepspeed"), "--hostfile", hostfile]
        deepspeed += ["--master_port", port or work.port, *launcher]
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.runner = two.popen(
            [*(starter or deepspeed), ROOT / "train.py", *flags],
            work.folder,
            self.log,
            PATH=path,
            PYTHONPATH=str(ROOT),
            PDSH_SSH_ARGS_APPEND=KEEP_ALIVE,
            OMPI_ALLOW_RUN_AS_ROOT="1",
            OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            **variables,
        )

    def again(self, port: int | None = None, output: Path | None = None) -> Launch:
        """Start the same command, perhaps into another folder."""
        flags = list(self.flags)
        if output:
            flags[flags.index("--output") + 1] = output
        return Launch(self.two, self.work, flags, "again", port=port)

    def interrupt(self, number: int = SIGINT) -> None:
        """Signal the whole process group, as a terminal does."""
        self.two.signal_group(self.runner, number)

    def signal_runner(self, number: int = SIGKILL, *, pdsh: bool = False) -> None:
        """Signal the `deepspeed` command alone, or pdsh below it."""
        wanted = b"pdsh" if pdsh else b"/deepspeed\0"
        for process in self.two.a.processes():
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            if wanted in words[:200] and b"nsenter" not in words[:10]:
                os.kill(process.pid, number)

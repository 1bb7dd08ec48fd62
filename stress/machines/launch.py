"""One start of the real launcher on two machines, watched and signalled from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL

from stress.chaos.session import CONTINUING, LAUNCHERS_LINE, ROOT, STEP_LINE
from stress.chaos.workplace import Workplace
from stress.machines.two_machines import TwoMachines

BOTH = "mA slots=1\nmB slots=1\n"
# longer than a cut that the run survives: an ssh that gives up stops it
KEEP_ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o ConnectTimeout=10 -o BatchMode=yes"
MEET = 45.0  # seconds that a rank is waited for, here; 300 otherwise
PATIENCE = 240.0


class Launch:
    """`deepspeed --hostfile ... train.py FLAGS`, started on mA."""

    def __init__(
        self, two: TwoMachines, work: Workplace, flags: list[object], name: str, *launcher: object, hosts: str = BOTH
    ) -> None:
        self.two = two
        work.sessions += 1
        self.log = work.folder / "logs" / f"{work.sessions:03d}-{name}.log"
        self.log.parent.mkdir(exist_ok=True)
        hostfile = work.folder / f"hostfile-{work.sessions}"
        hostfile.write_text(hosts, encoding="utf-8")
        variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "BUFUDU_WATCHDOG": f"meet={MEET}"}
        (work.folder / ".deepspeed_env").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
        command = [sys.executable, Path(sys.executable).with_name("deepspeed"), "--hostfile", hostfile]
        port = [] if "--master_port" in launcher else ["--master_port", work.port]
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.started = time.monotonic()
        self.runner = two.popen(
            [*command, *port, *launcher, ROOT / "train.py", *flags],
            work.folder,
            self.log,
            PATH=path,
            PYTHONPATH=str(ROOT),
            PDSH_SSH_ARGS_APPEND=KEEP_ALIVE,
            **variables,
        )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def said(self) -> list[str]:
        """Lines of train.py, pdsh and ssh, without the launcher's and the name of the machine before them."""
        lines = [line.removeprefix("mA: ").removeprefix("mB: ") for line in self.output.splitlines()]
        return [line for line in lines if not LAUNCHERS_LINE.match(line)]

    @property
    def announced(self) -> int | None:
        """The step that the run continues from, 0 for a start from nothing, None while it has not said so."""
        text = "\n".join(self.said)
        if found := CONTINUING.search(text):
            return int(found[2].replace(",", ""))
        return 0 if STEP_LINE.search(text) else None

    def wait_until(self, true: Callable[[], object], limit: float = PATIENCE) -> bool:
        deadline = time.monotonic() + limit
        while not true():
            if self.runner.poll() is not None or time.monotonic() > deadline:
                return bool(true())
            time.sleep(0.1)
        return True

    def wait_end(self, limit: float = PATIENCE) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.runner.wait(limit)
        return None

    def interrupt(self, number: int = SIGINT) -> None:
        """Signal the whole process group, as a terminal does."""
        self.two.signal_group(self.runner, number)

    def kill_runner(self, *, pdsh: bool = False) -> None:
        """Kill the `deepspeed` command, or pdsh below it."""
        wanted = b"pdsh" if pdsh else b"/deepspeed\0"
        for process in self.two.a.processes():
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            if wanted in words[:200] and b"nsenter" not in words[:10]:
                os.kill(process.pid, SIGKILL)

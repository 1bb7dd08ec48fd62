"""One start of the real launcher, watched and signalled from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "BUFUDU_CHAOS"  # in the environment of every process of a session, so that an orphan is found too
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CROSS_RANK",
    "CROSS_SIZE",
)
STEP_LINE = re.compile(r"^step ([\d,]+)/", re.MULTILINE)
CONTINUING = re.compile(r"continuing from (\S+) \(step ([\d,]+)")
MACHINE = re.compile(r"^m[AB]: ")  # that pdsh writes before each line
LAUNCHERS_LINE = re.compile(r"\[\d{4}-\d\d-\d\d ")
RUNNERS_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\):\n  File .*/deepspeed\", line (?:.*\n)+?"
    r"KeyboardInterrupt\n"
)
LISTENING = "0A"  # a socket's state in /proc/net/tcp
PATIENCE = 300.0  # seconds, against a hang of the harness


@dataclass(frozen=True)
class Process:
    """A living process of a session; `role` is runner, launch, rankN or other (a helper of one of these)."""

    pid: int
    role: str


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without what a launcher sets: whatever is started is no rank of it."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}


def find_processes(mark: str) -> list[Process]:
    """Those whose environment carries `mark`, whoever their parent is by now; zombies are none."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in environment:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append(Process(int(folder.name), role_of(environment, words)))
        except OSError:
            continue  # gone meanwhile, or not ours to read
    return found


def role_of(environment: Sequence[bytes], words: Sequence[bytes]) -> str:
    """What a process is in its run, by its environment and its command line."""
    command = b" ".join(words)
    if b"deepspeed.launcher.launch" in command:
        return "launch"
    ranks = [entry.removeprefix(b"RANK=") for entry in environment if entry.startswith(b"RANK=")]
    # launch.py hands over its environment when it forks, before the rank's own command line stands there
    if ranks and b"train.py" in command:
        return f"rank{ranks[0].decode()}"
    return "runner" if b"deepspeed" in command and not ranks else "other"


def listening(port: int) -> bool:
    """Whether any socket of this machine still listens at `port`."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
    return False


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _as_at_a_terminal() -> None:
    """A harness started in the background ignores Ctrl-C; what it starts must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Started:
    """A command that was started, with its output in `log`."""

    runner: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def said(self) -> list[str]:
        """Lines of train.py, pdsh and ssh, without the launcher's and the name of the machine before them."""
        lines = [MACHINE.sub("", line) for line in self.output.splitlines()]
        return [line for line in lines if not LAUNCHERS_LINE.match(line)]

    @property
    def announced(self) -> int | None:
        """The step that the run said it continues from, 0 for a start from nothing, None while it has said neither."""
        said = "\n".join(self.said)
        if found := CONTINUING.search(said):
            return int(found[2].replace(",", ""))
        return 0 if STEP_LINE.search(said) else None

    @property
    def ended(self) -> bool:
        """Whether the command has returned to its shell."""
        return self.runner.poll() is not None

    def wait_until(self, true: Callable[[], object], limit: float = PATIENCE, pause: float = 0.02) -> bool:
        """False if the command returned, or `limit` seconds passed, before `true` was."""
        deadline = time.monotonic() + limit
        while not true():
            if self.ended or time.monotonic() > deadline:
                return bool(true())
            time.sleep(pause)
        return True

    def wait_end(self, limit: float = PATIENCE) -> int | None:
        """The command's exit status, None if it has not returned in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.runner.wait(limit)
        return None


class Session(Started):
    """`deepspeed --num_gpus N train.py FLAGS` in a process group of its own; its output goes to `log`."""

    def __init__(
        self,
        flags: Sequence[object],
        *,
        folder: Path,
        log: Path,
        port: int,
        processes: int = 2,
        script: Sequence[str] = (str(ROOT / "train.py"),),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.mark, self.log, self.port = uuid.uuid4().hex, log, port
        log.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(sys.executable).with_name("deepspeed")
        command = [
            beside if beside.is_file() else "deepspeed",
            "--num_gpus",
            processes,
            "--master_port",
            port,
            *script,
            *flags,
        ]
        self.started, self.wall_started = time.monotonic(), time.time()
        with log.open("w", encoding="utf-8") as file:
            self.runner = subprocess.Popen(
                [str(word) for word in command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_at_a_terminal,
                env=inherited_environment()
                | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: self.mark}
                | (environment or {}),
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.sweep()

    @property
    def traceback(self) -> bool:
        """Whether train.py printed one; Ctrl-C lets the deepspeed command print a KeyboardInterrupt of its own."""
        return "Traceback" in RUNNERS_TRACEBACK.sub("", self.output)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def processes(self, *roles: str) -> list[Process]:
        """The living ones, of all roles or of some; the role "ranks" is every rank."""
        alive = find_processes(self.mark)
        if not roles:
            return alive
        return [p for p in alive if p.role in roles or ("ranks" in roles and p.role.startswith("rank"))]

    def send(self, number: int, *roles: str) -> list[int]:
        """Signal the processes of these roles ("group": the whole process group, as a terminal does); returns whom."""
        if "group" in roles:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.runner.pid, number)
            return [self.runner.pid]
        reached = []
        for process in self.processes(*roles):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
                reached.append(process.pid)
        return reached

    @property
    def port_bound(self) -> bool:
        """Whether it stays so: the kernel closes a dying process's sockets a moment after its memory is gone."""
        deadline = time.monotonic() + 3
        while listening(self.port):
            if time.monotonic() > deadline:
                return True
            time.sleep(0.05)
        return False

    def wait_gone(self, limit: float) -> float | None:
        """Seconds until no process is left, None if some still were after `limit`."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit:
            self.runner.poll()  # so that it does not stay as a zombie
            if not self.processes():
                return time.monotonic() - begun
            time.sleep(0.05)
        return None

    def sweep(self) -> list[Process]:
        """End what is left; returns what was."""
        left = self.processes()
        kill(process.pid for process in left)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.runner.wait(10)
        return left


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, a stopped process too."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

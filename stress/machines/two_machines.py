"""Two machines played by this one: network, process, mount and host-name namespaces of their own, ssh between them.

They share the file system, but for what `mount` puts in the way. It needs root, and of Debian the packages iproute2,
openssh-server, openssh-client and pdsh. A bridge in a third namespace is the switch, so that a cut link is silent.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

NEEDED = {"ip": "iproute2", "pdsh": "pdsh", "ssh": "openssh-client", "sshd": "openssh-server", "nsenter": "util-linux"}
NAMES, ADDRESSES = ("mA", "mB"), ("10.99.0.1", "10.99.0.2")
LISTENING_SECONDS = 10.0
_NUMBERS = itertools.count()


def missing() -> str:
    """Return why two machines cannot be played here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if packages := sorted({package for command, package in NEEDED.items() if not _which(command)}):
        return f"needs the packages {', '.join(packages)}"
    probe = subprocess.run(
        ["unshare", "-nmupf", "ip", "link", "add", "name", "sw0", "type", "bridge"], capture_output=True
    )
    return "" if probe.returncode == 0 else "needs a kernel that lets root make namespaces and a bridge"


def _which(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class Process:
    """A living process of a machine; `role` is "launch", "rankN", "ssh" (the connection to it), "port" (a program that
    has the run's port) or "other"."""

    pid: int
    role: str


class Machine:
    """One of the two: its sshd is process 1 of its process namespace."""

    def __init__(self, name: str, address: str, namespace: str, folder: Path) -> None:
        self.name, self.address, self.namespace, self.folder = name, address, namespace, folder
        home = pwd.getpwuid(0).pw_dir
        Path(home, ".ssh").mkdir(mode=0o700, exist_ok=True)
        script = (
            f"hostname {name}; mount --bind {folder}/ssh {home}/.ssh; mount --bind {folder}/hosts-{name} /etc/hosts; "
            f"mount -t tmpfs run /run; mkdir /run/sshd; exec {_which('sshd')} -De -f /dev/null "
            f"-h {folder}/host -o UsePAM=no -o PidFile=none -o StrictModes=no"
        )
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            words = ["ip", "netns", "exec", namespace, "unshare", "-mupf", "--kill-child", "--mount-proc"]
            self._unshare = subprocess.Popen([*words, "sh", "-c", script], stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + LISTENING_SECONDS
        while "Server listening" not in self.log.read_text():
            if time.monotonic() > deadline or self._unshare.poll() is not None:
                raise RuntimeError(f"the sshd of {name} does not start: {self.log.read_text()}")
            time.sleep(0.02)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self.init = int(children[0])
        self._pids = os.readlink(f"/proc/{self.init}/ns/pid")

    def command(self, *words: object) -> list[str]:
        """Return the command line that runs a command on this machine, as if someone had logged in there."""
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-p", *map(str, words)]

    def run(self, *words: object) -> None:
        """Run a short command there."""
        subprocess.run(self.command(*words), check=True, capture_output=True)

    def mount(self, source: Path, target: Path) -> None:
        """Let this machine see the file or folder `source` at the path `target`."""
        self.run("mount", "--bind", source, target)

    def unmount(self, target: Path) -> None:
        """Take back what `mount` did."""
        self.run("umount", target)

    def processes(self, *roles: str) -> list[Process]:
        """Return the living processes, of all roles or of some, without sshd itself; zombies are none."""
        found = list(self._all())
        return [process for process in found if process.role in roles] if roles else found

    def _all(self) -> Iterator[Process]:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == self.init:
                continue
            with suppress(OSError):  # gone meanwhile
                if os.readlink(folder / "ns/pid") == self._pids and (words := (folder / "cmdline").read_bytes()):
                    yield Process(int(folder.name), _role(words, (folder / "environ").read_bytes()))

    def send(self, number: int, *roles: str) -> list[int]:
        """Signal the processes of these roles, and return whom."""
        reached = [process.pid for process in self.processes(*roles)]
        for pid in reached:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return reached

    @property
    def training(self) -> list[Process]:
        """The processes of a run: its ranks, their launcher and the workers of these."""
        return [process for process in self.processes() if process.role not in ("ssh", "port")]

    def power_off(self) -> None:
        """End every process of the machine at once; nothing of it is sent over a link that was cut before."""
        os.kill(self.init, signal.SIGKILL)
        self._unshare.wait()


def _role(command_line: bytes, environment: bytes) -> str:
    words = command_line.split(b"\0")
    if b"http.server" in words:
        return "port"
    ranks = [entry.removeprefix(b"RANK=") for entry in environment.split(b"\0") if entry.startswith(b"RANK=")]
    if ranks and any(word.endswith((b"train.py", b"worker_watchdog.py")) for word in words[:4]):
        return f"rank{ranks[0].decode()}"
    if b"deepspeed.launcher.launch" in words[:5]:
        return "launch"
    if words[0].startswith(b"sshd") or Path(words[0].decode()).name in ("ssh", "pdsh", "nsenter"):
        return "ssh"
    return "runner" if any(word.endswith(b"/deepspeed") for word in words[:3]) else "other"


class TwoMachines:
    """Machines mA (10.99.0.1) and mB (10.99.0.2), which log in to each other without a question; end with `close`."""

    def __init__(self) -> None:
        self.folder = Path(mkdtemp(prefix="two-machines-"))
        number = f"{os.getpid()}-{next(_NUMBERS)}"
        self._switch, *self._namespaces = (f"{name}-{number}" for name in ("switch", *NAMES))
        self._ports: dict[str, str] = {}
        self.machines: list[Machine] = []
        try:
            self._write_ssh_files()
            self._connect()
            for name, address, namespace in zip(NAMES, ADDRESSES, self._namespaces, strict=True):
                self.machines.append(Machine(name, address, namespace, self.folder))
        except BaseException:
            self.close()
            raise
        self.a, self.b = self.machines

    def _write_ssh_files(self) -> None:
        ssh = self.folder / "ssh"
        ssh.mkdir(mode=0o700)
        for key in (ssh / "id_ed25519", self.folder / "host"):
            subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        kind, key, *_ = (self.folder / "host.pub").read_text().split()
        (ssh / "known_hosts").write_text(f"{','.join(NAMES)},10.99.0.* {kind} {key}\n")
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            hosts = [f"{address} {name}" for name, address in zip(NAMES, ADDRESSES, strict=True)]
            own = f"127.0.1.1 {name}"  # as Debian's installer writes it
            lines = ["127.0.0.1 localhost", *(own if line == f"{address} {name}" else line for line in hosts)]
            (self.folder / f"hosts-{name}").write_text("\n".join(lines) + "\n")

    def _connect(self) -> None:
        for namespace in (self._switch, *self._namespaces):
            _ip("netns", "add", namespace)
        _ip("-n", self._switch, "link", "add", "name", "sw0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "sw0", "up")
        for name, address, namespace in zip(NAMES, ADDRESSES, self._namespaces, strict=True):
            port = self._ports[name] = f"port-{name}"
            _ip("link", "add", "e0", "netns", namespace, "type", "veth", "peer", "name", port, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", port, "master", "sw0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "e0")
            _ip("-n", namespace, "link", "set", "e0", "up")

    def cut(self) -> None:
        """Let no packet through between the machines; neither of them notices that a link is down."""
        _ip("-n", self._switch, "link", "set", self._ports["mB"], "nomaster")

    def restore(self) -> None:
        """Connect what `cut` has cut."""
        _ip("-n", self._switch, "link", "set", self._ports["mB"], "master", "sw0")

    def popen(self, words: Sequence[object], folder: Path, output: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on mA, as the head of a process group, as a terminal would."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        with output.open("wb") as file:
            return subprocess.Popen(
                self.a.command("env", "-C", folder, *variables, *words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal_group(self, head: subprocess.Popen[bytes], number: int) -> None:
        """Signal what `popen` has started, with its children on mA, as a terminal does; not nsenter, for its status."""
        for process in self.a.processes():
            with suppress(ProcessLookupError):
                if process.pid != head.pid and os.getpgid(process.pid) == head.pid:
                    os.kill(process.pid, number)

    def training(self) -> list[tuple[str, Process]]:
        """Return what is left of a run on either machine."""
        return [(machine.name, process) for machine in self.machines for process in machine.training]

    def seconds_until_free(self, limit: float) -> float | None:
        """Return the seconds until no process of a run is left on either machine; None if one was after `limit`."""
        begun = time.monotonic()
        while self.training():
            if time.monotonic() - begun > limit:
                return None
            time.sleep(0.1)
        return time.monotonic() - begun

    def sweep(self) -> None:
        """Kill what is left on both machines but their sshd, and join the link again."""
        for machine in self.machines:
            machine.send(signal.SIGKILL)
        with suppress(subprocess.CalledProcessError):
            self.restore()

    def close(self) -> None:
        """End both machines, and remove every trace."""
        for machine in self.machines:
            with suppress(ProcessLookupError):
                machine.power_off()
        for namespace in (self._switch, *self._namespaces):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", namespace)
        shutil.rmtree(self.folder, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run([_which("ip") or "ip", *words], check=True, capture_output=True)

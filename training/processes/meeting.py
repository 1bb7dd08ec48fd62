"""How rank 0 finds out who takes part: every other rank claims its place at rank 0's store, and says what it is.

Rank 0 writes its own description to "run". Another rank adds one to "claims" and describes itself in "claim/N"; it is
turned away by "answer/N", or finds its N in "met" when all are there. "outcome" says what became of the preparation
that follows, or that there will be no run. A rank of another launch, left over or too early, is so not taken for ours.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from threading import Event
from typing import Any

import psutil
from torch.distributed import DistError, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from common.errors import UserError
from training.processes.agreement import difference
from training.processes.heartbeat import Heartbeat, pid_namespace
from training.processes.launchers import hosts_of_ranks, launcher_identity, machine_index
from training.processes.network import answer, free_port, interruptibly, is_own, resolve
from training.processes.stopping import StoppedEarly

# Seconds
CONNECT_TIMEOUT, STORE_TIMEOUT = timedelta(seconds=5), timedelta(days=1)
SAME_LAUNCH = 10.0  # within which one launch starts its processes on all machines
SAME_TRIAL = 60.0  # within which someone starts them by hand
SUCCESSOR = 20.0  # for the rank of this launch to come where one that was started at another time is there
FOREIGN = 10.0  # for an earlier run to leave the port
ENDING = 30.0  # the same while it shows that it ends, and for the next rank 0 to come after it has gone
POLL = 0.2
SAYINGS = 15  # of a rank that waits for others, until it gives up

# Rank 0 sets the key to "ready:RESULT", "failed" or "stopped"; each rank that reads one of the last two counts itself.
OUTCOME, LEFT = "outcome", "left"
READY, FAILED, STOPPED = "ready:", "failed", "stopped"


class NotAdmittedError(UserError):
    """Rank 0 was not found, or has turned this rank away."""


@dataclass(frozen=True)
class Participant:
    """What a rank says of itself before it may take part."""

    rank: int
    facts: dict[str, Any] = field(default_factory=dict)
    """What must be the same on all ranks (agreement.py)."""
    reached: str = ""
    """Address at which it has found rank 0."""
    problem: str = ""
    """Why it cannot take part."""
    host: str = field(default_factory=socket.gethostname)
    namespace: str = field(default_factory=pid_namespace)
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=lambda: psutil.Process().create_time())
    launcher: str = field(default_factory=launcher_identity)
    machine: int = field(default_factory=machine_index)

    def encode(self) -> str:
        """Return the text that goes through the store."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def decode(cls, text: bytes) -> Participant:
        """Return what `encode` made into text."""
        return cls(**json.loads(text))

    @property
    def name(self) -> str:
        """Return how messages call the rank."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def apart(self, other: Participant) -> float:
        """Return the seconds between the starts of two ranks; 0 for one launcher, infinite for two on one machine."""
        if (self.namespace, self.machine) == (other.namespace, other.machine) and self.launcher and other.launcher:
            return 0.0 if self.launcher == other.launcher else float("inf")
        return abs(self.started - other.started)


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class Meeting:
    """Rank 0's side: lets the ranks of this run in, and turns others away."""

    def __init__(self, store: Store, me: Participant, size: int, say: Callable[[str], None]) -> None:
        self.store, self.me, self.size, self.say = store, me, size, say
        self.members: dict[int, tuple[int, Participant]] = {}
        self.master = ""  # address at which other machines, if there are any, have found this one
        self.listeners = 0  # ranks that will read an answer or the outcome
        self._read = 0
        store.set("run", me.encode())

    def wait_for_all(self, seconds: float) -> dict[int, Participant]:
        """Return the others when all are there; raise UserError after so many seconds, saying what to check."""
        started, said = time.monotonic(), 0.0
        complete: float | None = None
        while True:
            self._read_claims()
            now = time.monotonic()
            waited = now - started
            if len(self.members) == self.size - 1:
                complete = complete or now
                if self._all_of_this_launch(now - complete):
                    break
            elif waited > seconds:
                raise UserError(self._give_up(waited))
            elif waited > said + seconds / SAYINGS:
                ssh = "" if said else self._ssh()
                said = waited
                self.say(f"waiting for {self._missing()}, {waited:.0f} s{ssh}")
            time.sleep(POLL)
        others = {rank: participant for rank, (_, participant) in sorted(self.members.items())}
        self.master = self._master_address(others)
        claims = [number for number, _ in self.members.values()]
        self.store.set("met", json.dumps({"claims": claims, "master": self.master}))
        return others

    def _all_of_this_launch(self, waited: float) -> bool:
        """Return whether no member looks like one of an earlier launch, or its successor was waited for long enough."""
        apart = [self.me.apart(member) for _, member in self.members.values()]
        return waited >= SUCCESSOR or max(apart, default=0.0) <= SAME_LAUNCH

    def _read_claims(self) -> None:
        for number in range(self._read + 1, self.store.add("claims", 0) + 1):
            if not self.store.check([f"claim/{number}"]):
                break  # it is being written
            self._read = number
            self._admit(number, Participant.decode(self.store.get(f"claim/{number}")))
        if any(self.store.check([f"stopped/{number}"]) for number, _ in self.members.values()):
            raise StoppedEarly("another process was asked to stop")

    def _admit(self, number: int, claimant: Participant) -> None:
        apart = self.me.apart(claimant)
        if claimant.problem:
            if apart <= SAME_TRIAL:
                raise UserError(f"{claimant.name} cannot take part: {claimant.problem}")
            return
        self.listeners += 1
        if what := difference(self.me.facts, claimant.facts):
            text = f"{claimant.name} was not started as rank 0 on {self.me.host} was: {what}"
            self._turn_away(number, text)
            if apart <= SAME_LAUNCH:
                raise UserError(f"{text}: start all with the same command, files and versions")
            self.say(f"{text}: turned away; still waiting for rank {claimant.rank}")
            return
        if apart == float("inf"):
            self._turn_away(number, f"{claimant.name} is of another launch than {self.me.name}")
            return
        if claimant.rank in self.members:
            other_number, other = self.members[claimant.rank]
            if self.me.apart(other) <= apart:
                self._turn_away(number, f"{other.name} has taken the place of {claimant.name}")
                return
            self._turn_away(other_number, f"{claimant.name} has taken the place of {other.name}")
        self.members[claimant.rank] = number, claimant

    def _turn_away(self, number: int, text: str) -> None:
        self.store.set(f"answer/{number}", text)

    def _master_address(self, others: Mapping[int, Participant]) -> str:
        return next((other.reached for other in others.values() if other.namespace != self.me.namespace), "")

    def _absent(self) -> dict[int, str]:
        hosts = hosts_of_ranks()
        absent = [rank for rank in range(1, self.size) if rank not in self.members]
        return {rank: hosts[rank] if rank < len(hosts) else "" for rank in absent}

    def _missing(self) -> str:
        names = [f"rank {rank}{host and f' ({host})'}" for rank, host in self._absent().items()]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _ssh(self) -> str:
        """Return what ssh says of the first missing machine, if that is how it was started."""
        host = next(iter(self._absent().values()), "")
        return f"; {_look_at(host)}" if host and "SSH_CONNECTION" in os.environ else ""

    def _give_up(self, waited: float) -> str:
        host = next(iter(self._absent().values()), "") or "its machine"
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        return (
            f"{self._missing()} did not come within {waited:.0f} s{self._ssh()}: check that `ssh {host} hostname` asks "
            f"nothing, that {os.getcwd()}, {sys.executable} and the data are there too, and that {host} reaches "
            f"{address}:{port} (firewall, deepspeed --master_addr); BUFUDU_WATCHDOG=meet=900 waits longer"
        )


def _look_at(host: str) -> str:
    """Return in words whether a machine can be logged in to, and has this folder and this Python."""
    if not shutil.which("ssh"):
        return "its launcher's output is above"
    options = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR")
    check = f"cd {os.getcwd()!r} && test -x {sys.executable!r}"
    try:
        done = subprocess.run(
            ["ssh", *options, host, check], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"ssh {host} does not answer"
    if done.returncode == 0:
        return f"ssh {host} works, and the folder and Python are there: what it printed is above"
    last = (done.stderr.strip().splitlines() or [f"{sys.executable} is not there"])[-1]
    return f"ssh {host} says: {last}"


# --- the other ranks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Admission:
    """A place in the run: the store, where it is, and the address of rank 0's machine (empty on a single machine)."""

    store: TCPStore
    address: str
    port: int
    master: str


class Guest:
    """Another rank's side. Everything here may block inside the store, so it belongs into a thread of its own."""

    def __init__(self, rank: int, facts: dict[str, Any], address: str, port: int, say: Callable[[str], None]) -> None:
        self.rank, self.facts, self.address, self.port, self.say = rank, facts, address, port, say
        self.leaving = Event()
        self._foreign: tuple[float, str] | None = None  # until when a store that is not ours is waited for, and whose
        self._claim: tuple[Store, int] | None = None

    def join(self, seconds: float) -> Admission:
        """Return a place in the run; raise NotAdmittedError, StoppedEarly or SystemExit(2) if there is none for us."""
        started, said = time.monotonic(), 0.0
        candidates = [self.address, *self._by_host_name()]
        while not self.leaving.is_set():
            for address in candidates:
                found = self._connect(address)
                if found and (admission := self._take_part(*found, wrong=address != self.address)):
                    return admission
            waited = time.monotonic() - started
            if self._foreign and time.monotonic() > self._foreign[0]:
                raise NotAdmittedError(f"the store at {self.address}:{self.port} {self._foreign[1]}")
            if waited > seconds:
                raise NotAdmittedError(self._not_found(waited))
            if waited > said + seconds / SAYINGS:
                said = waited
                self.say(f"waiting for rank 0 at {self.address}:{self.port}, {waited:.0f} s")
            time.sleep(POLL)
        raise StoppedEarly("asked to stop")

    def tell(self, problem: str, seconds: float) -> None:
        """Tell rank 0 why this rank cannot take part, if rank 0 is to be found within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for address in (self.address, *self._by_host_name()):
                if found := self._connect(address):
                    store, me = found[0], Participant(self.rank, problem=problem)
                    if not store.check(["met"]) and me.apart(Participant.decode(store.get("run"))) <= SAME_TRIAL:
                        store.set(f"claim/{store.add('claims', 1)}", me.encode())
                    return
            time.sleep(POLL)

    def withdraw(self) -> None:
        """Tell rank 0 that this rank was asked to stop."""
        if self._claim:
            store, number = self._claim
            store.set(f"stopped/{number}", "")

    def _by_host_name(self) -> list[str]:
        """Return the addresses of rank 0's machine by its name in the hostfile, in case the given one is wrong."""
        hosts = hosts_of_ranks()
        if not hosts or machine_index() == 0:
            return []
        return [found for found in resolve(hosts[0]) if found not in resolve(self.address) and not is_own(found)]

    def _connect(self, address: str) -> tuple[TCPStore, str] | None:
        """Return the store at an address, if there is one that says whose it is, and its address in figures."""
        try:
            if not (reached := answer(address, self.port)):
                return None
            store = interruptibly(lambda: self._open(address), 3 * CONNECT_TIMEOUT.total_seconds())
        except (FutureTimeoutError, DistError):  # something listens there that does not speak as a store does, or ends
            why = f"is none, another program has the port: start with deepspeed --master_port {free_port()} ..."
            self._foreign = self._foreign or (time.monotonic() + ENDING, why)
            return None
        except OSError:
            return None
        return store, reached

    def _open(self, address: str) -> TCPStore:
        store = TCPStore(address, self.port, is_master=False, timeout=CONNECT_TIMEOUT, wait_for_workers=False)
        store.wait(["run"], CONNECT_TIMEOUT)
        store.set_timeout(STORE_TIMEOUT)
        return store

    def _take_part(self, store: TCPStore, reached: str, *, wrong: bool) -> Admission | None:
        """Claim our place and wait for the others; None if the store is another run's or is lost."""
        try:
            host, me = Participant.decode(store.get("run")), Participant(self.rank, self.facts, reached)
            if store.check(["met"]):
                return self._is_foreign(store, host)
            if wrong:
                if self._connect(self.address):
                    return None  # it was not yet there when we looked before
                self._refuse_address(store, host, reached)
            number = store.add("claims", 1)
            self._claim = store, number
            store.set(f"claim/{number}", me.encode())
            while not self.leaving.is_set():
                if store.check([f"answer/{number}"]):
                    text = store.get(f"answer/{number}").decode()
                    store.add(LEFT, 1)
                    raise NotAdmittedError(text)
                if store.check(["met"]):
                    met = json.loads(store.get("met"))
                    if number not in met["claims"]:
                        return self._is_foreign(store, host)
                    return Admission(store, reached, self.port, met["master"])
                if store.check([OUTCOME]):
                    if me.apart(host) <= SAME_LAUNCH:
                        raise_outcome(store)
                    return self._is_foreign(store, host)
                time.sleep(POLL)
        except (DistError, RuntimeError):
            if self._claim:
                self._claim = None
                self._foreign = time.monotonic() + ENDING, "was that of rank 0, which has ended: start again"
        return None

    def _is_foreign(self, store: Store, host: Participant) -> None:
        """Set how long to wait for the store of another run to go."""
        ending = store.check([OUTCOME]) and not store.get(OUTCOME).startswith(READY.encode())
        if store.check(["watch/0"]):
            beat = Heartbeat.decode(store.get("watch/0"))
            ending = ending or bool(beat.ended or beat.stop_reason)
        if ending or self._foreign is None:
            why = f"belongs to another run ({host.name}): wait for it, or start this one with deepspeed --master_port"
            self._foreign = time.monotonic() + (ENDING if ending else FOREIGN), f"{why} {free_port()} ..."

    def _refuse_address(self, store: Store, host: Participant, reached: str) -> None:
        text = (
            f"rank 0 on {host.host} is at {reached} and not at {self.address} as seen from {socket.gethostname()}: "
            f"start with deepspeed --master_addr {reached} ..."
        )
        self.tell(text, seconds=2 * CONNECT_TIMEOUT.total_seconds())
        raise NotAdmittedError(text)

    def _not_found(self, waited: float) -> str:
        own = ""
        if machine_index() and any(map(is_own, resolve(self.address))):
            own = f", and that is an address of this machine, {socket.gethostname()}, which has not got rank 0"
        return (
            f"rank 0 cannot be reached at {self.address}:{self.port} within {waited:.0f} s{own}: check that it was "
            "started, and --master_addr, --master_port and the firewall between the machines"
        )


def wait_for_outcome(store: Store) -> str:
    """Return what rank 0 has prepared; raise StoppedEarly or SystemExit(2) if there will be no run."""
    while not store.check([OUTCOME]):
        time.sleep(POLL)
    return raise_outcome(store)


def raise_outcome(store: Store) -> str:
    """Return the result in the outcome, or raise what it says."""
    outcome = store.get(OUTCOME).decode()
    if outcome.startswith(READY):
        return outcome.removeprefix(READY)
    store.add(LEFT, 1)
    if outcome == STOPPED:
        raise StoppedEarly("another process was asked to stop")
    raise SystemExit(2)

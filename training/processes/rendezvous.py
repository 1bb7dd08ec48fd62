"""How the ranks of a run come together, and the way of a start:

    variables of the launcher     launchers.py, process_group.World: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
      |
    rendezvous                    rank 0 listens at MASTER_PORT (coordinator.py), every other rank asks to take part
      |
    facts compared                agreement.py: code, versions, JSON, flags; a rank of another start is refused
      |
    heartbeats begin              watchdog.py; failure_detector.py names a rank that dies, hangs or is stuck
      |
    rank 0 prepares the data      the others go on asking, for hours if need be
      |
    process group                 a TCPStore, then gloo or NCCL
      |
    training                      until stopping.py has a reason to stop: a signal, the time limit, the launcher gone
      |
    exit status                   exit.py: ended in order, refused, failed, or another rank's fault

The ranks wait in questions of a second and not inside a collective, whose timeout would have to cover hours of
tokenizing. What may block in C++ runs in a thread of its own, so that a signal ends the process at any time.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from common.errors import UserError
from training.processes import network
from training.processes.coordinator import POLL, REMARKS, Coordinator, Participant
from training.processes.heartbeat import Heartbeat
from training.processes.launchers import DEFAULT_PORT, hosts_of_ranks, idle_hosts, rendezvous_port
from training.processes.lock import read_token
from training.processes.process_group import World
from training.processes.stopping import StoppedEarly
from training.processes.watchdog import Watchdog

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# Seconds
GROUP_SECONDS = 120.0  # for the ranks, which have met, to open connections to each other
RELEASE_SECONDS, RELEASE_MACHINES_SECONDS = 3.0, 10.0  # for the other ranks to read that there will be no run
ABSENT_SECONDS = 1.0  # of these, for one that has not come when the run is stopped: it may never, or is stopped as well
TELL_SECONDS = 20.0  # for a rank that cannot take part to find rank 0
ENDING_SECONDS = 60.0  # for what is at the port to leave it: a run that is ending finishes a step and saves
STRANGE_SECONDS = 10.0  # for what is no rank 0, and will not become one
SHARED_SECONDS = 10.0  # for a network file system to show what another machine has written


class NotAdmittedError(UserError):
    """Rank 0 has refused this rank."""


def form_process_group(
    world: World,
    device_kind: str,
    prepare: Callable[[], str],
    *,
    watchdog: Watchdog,
    facts: Mapping[str, Any] | None = None,
    before_listening: Callable[[], None] = lambda: None,
) -> str:
    """Run `prepare` on rank 0 when all ranks are there, form the process group, and return its result on every rank.

    `facts` must be the same on all ranks. Rank 0 calls `before_listening` before it takes the port, which an earlier
    run that is ending may still have. An error is raised on rank 0; the other ranks raise SystemExit(2) without a
    message, or StoppedEarly if rank 0 was asked to stop.
    """
    place = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.local_rank}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": DEFAULT_PORT}.items():
        os.environ.setdefault(name, str(value))  # `python train.py` is a world of one; DeepSpeed wants it spelled out
    comparable = json.loads(json.dumps(facts or {}, default=str))  # as they arrive at another rank
    me, port = Participant.of_this_process(world.rank, facts=comparable), rendezvous_port()
    open_store: Callable[[], Store] = HashStore
    if world.size == 1:
        before_listening()
        result = prepare()
    elif world.rank == 0:
        result, open_store = _coordinate(world, me, port, watchdog, before_listening, prepare)
    else:
        result, open_store = _Joining(me, os.environ["MASTER_ADDR"], port, watchdog, world.local_rank == 0).join()
    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    _connect(world, "nccl" if device_kind == "cuda" else "gloo", open_store)
    return result


def _connect(world: World, backend: str, open_store: Callable[[], Store]) -> None:
    """Form the process group, in a thread so that this one notices signals; UserError if that takes too long."""
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            store = PrefixStore("group", open_store())
            dist.init_process_group(
                backend, store=store, rank=world.rank, world_size=world.size, timeout=COLLECTIVE_TIMEOUT
            )
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=connect, name="process group", daemon=True)
    thread.start()
    deadline = time.monotonic() + GROUP_SECONDS
    while thread.is_alive():
        thread.join(POLL)
        if time.monotonic() > deadline:
            raise UserError(
                f"the ranks have met, but {socket.gethostname()} cannot connect to the others: choose the interface "
                "between them with GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs), and look at the firewall between "
                "them"
            )
    if errors:
        raise errors[0]


# --- rank 0 -----------------------------------------------------------------------------------------------------------


def _coordinate(
    world: World,
    me: Participant,
    port: int,
    watchdog: Watchdog,
    before_listening: Callable[[], None],
    prepare: Callable[[], str],
) -> tuple[str, Callable[[], Store]]:
    """Wait for the others, prepare, and tell them; return the result and how to open the store."""
    say = watchdog.console.say
    coordinator, server = Coordinator(me, world.size, say), None
    watchdog.release = lambda outcome: None
    try:
        check_master_address(os.environ["MASTER_ADDR"])
        before_listening()
        server = _listen(port, coordinator)
        if idle := idle_hosts():
            say(f"{', '.join(idle)}: no slots in the hostfile, so nothing runs there")
        coordinator.wait_for_all(watchdog.timeouts.meet)
        members = coordinator.members.values()
        if machines := {member.host for member in members} - {me.host}:
            say(f"met: {me.host} and {', '.join(sorted(machines))}")
        watchdog.watch_ranks(coordinator.answer, wait_until_read=coordinator.wait_until_read)
        result = prepare()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # the address at which other machines, if there are any, have found this one
        master = next((member.reached for member in members if member.namespace != me.namespace), "")
        coordinator.publish("ready", result=result, store=store.port, master=master)
    except BaseException as error:
        if isinstance(error, StoppedEarly):
            coordinator.publish("stopped")
        watchdog.release = partial(_release, world, coordinator, server)
        raise
    if master:
        network.choose_interface(master)
    return result, lambda: store


def release_from(world: World) -> Callable[[str], None]:
    """Return how rank 0, before it coordinates the others, tells those that ask that there will be no run."""
    if world.rank or world.size == 1:
        return lambda outcome: None
    coordinator = Coordinator(Participant.of_this_process(0), world.size, lambda text: None)
    return partial(_release, world, coordinator, None)


def _release(world: World, coordinator: Coordinator, server: network.Server | None, outcome: str) -> None:
    """Let the other ranks read that the run has "failed" or was "stopped"; those that have not come are waited for."""
    coordinator.publish(outcome)
    with suppress(UserError):
        server = server or _listen(rendezvous_port(), coordinator)
        stopped = outcome == "stopped"
        seconds = RELEASE_MACHINES_SECONDS if world.size > world.local_size and not stopped else RELEASE_SECONDS
        coordinator.wait_until_read(seconds, ABSENT_SECONDS if stopped else None)


def _listen(port: int, coordinator: Coordinator) -> network.Server:
    try:
        return network.Server(port, coordinator.answer)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(
            f"port {port} is in use, perhaps by another run: start this one with "
            f"deepspeed --master_port {network.free_port()} ..."
        ) from None


def check_master_address(address: str) -> None:
    """Raise UserError unless `address` is one of this machine's at which others may look for rank 0."""
    found, hosts = network.resolve(address), set(hosts_of_ranks())
    others = [host for host in hosts if not any(map(network.is_own, network.resolve(host)))]
    if not any(map(network.is_own, found)):
        what = "not an address of this machine" if found else "a name that nobody knows on this machine"
    elif others and network.leads_nowhere(found):
        what = "the address of a bridge such as docker's on this machine"
    else:
        return
    here, own = socket.gethostname(), network.own_address_towards((others or [address])[0])
    alone = f", or with --force_multi if it is to run on {hosts.pop()} alone" if len(hosts) == 1 else ""
    raise UserError(
        f"{address} (deepspeed --master_addr, or what it took from the hostfile's first line) is {what}, {here}, which "
        f"has rank 0: start with deepspeed --master_addr {own or here}{alone}"
    )


# --- the other ranks --------------------------------------------------------------------------------------------------


class _Joining:
    """Another rank's way into the run: it asks until rank 0 has prepared it."""

    def __init__(self, me: Participant, address: str, port: int, watchdog: Watchdog, speaks: bool) -> None:
        self.me, self.address, self.port, self.watchdog = me, address, port, watchdog
        self.say = watchdog.console.fail if speaks else lambda text: None
        self.ask = partial(network.ask, address, port)

    def join(self) -> tuple[str, Callable[[], Store]]:
        """Return what rank 0 has prepared, and how to open the store.

        Raise UserError, StoppedEarly or SystemExit(2) if there is no place in a run.
        """
        try:
            answer = self._wait_for_rank0()
        except StoppedEarly:
            with suppress(OSError, ValueError):
                self.ask(asdict(replace(self.me, stopped=True)), seconds=1.0)
            raise
        exchange = partial(self.ask, seconds=self.watchdog.timeouts.hung / 8)
        self.watchdog.watch_ranks(exchange, Heartbeat.from_json(answer["rank0"]))
        while answer["state"] != "ready":
            if answer["state"] == "stopped":
                raise StoppedEarly("another process was asked to stop")
            if answer["state"] == "failed":
                raise SystemExit(2)
            time.sleep(self.watchdog.timeouts.beat)
            answer = self._answer()  # the watchdog says whether rank 0 has gone
        if answer["master"]:
            network.choose_interface(answer["master"])
        store = {"host_name": self.address, "port": answer["store"], "is_master": False, "wait_for_workers": False}
        return answer["result"], lambda: TCPStore(**store)

    def _answer(self) -> dict[str, Any]:
        """Return what rank 0 answers, or the state "absent" if nobody listens, "strange" if no rank 0 does."""
        try:
            return self.ask(asdict(self.me))
        except (network.NoAnswerError, ConnectionResetError, ValueError):
            return {"state": "strange"}
        except OSError:
            return {"state": "absent"}

    def _wait_for_rank0(self) -> dict[str, Any]:
        """Return the answer of rank 0 when all ranks have met."""
        seconds = self.watchdog.timeouts.meet
        started = clear = time.monotonic()
        said, admitted = 0.0, False
        while True:
            answer = self._answer()
            state, now = answer["state"], time.monotonic()
            if state == "refused":
                raise NotAdmittedError(answer["text"])
            if state in ("met", "ready", "failed", "stopped"):
                return answer
            admitted = admitted or state == "waiting"
            obstacle = _obstacle(answer, admitted)
            clear = clear if obstacle else now
            if now - clear > (STRANGE_SECONDS if state == "strange" else ENDING_SECONDS):
                raise UserError(f"port {self.port} at {self.address} {obstacle}")
            waited = now - started
            if state != "waiting" and waited > seconds:
                raise UserError(
                    f"rank 0 cannot be reached at {self.address}:{self.port} within {waited:.0f} s: check that it was "
                    "started, and --master_addr, --master_port and the firewall between the machines"
                )
            if state != "waiting" and waited > said + seconds / REMARKS:
                said = waited
                self.say(f"waiting for rank 0 at {self.address}:{self.port}, {waited:.0f} s")
            time.sleep(POLL)


def _obstacle(answer: dict[str, Any], admitted: bool) -> str:
    """Return what is at the port in place of our rank 0; empty if it is nothing."""
    other_port = f"start this one with deepspeed --master_port {network.free_port()} ..."
    if answer["state"] == "busy":
        return f"belongs to another run ({Heartbeat.from_json(answer['rank0']).name}): wait for it, or {other_port}"
    if answer["state"] == "strange":
        return f"is another program's: {other_port}"
    if answer["state"] == "absent" and admitted:
        return "was that of rank 0, which has ended: start again"
    return ""


def tell_rank0(rank: int, problem: str, stopped: Callable[[], bool]) -> bool:
    """Let rank 0 know why this rank does not come, and wait until it has ended.

    Return whether nothing needs to be printed here: rank 0 says it, or the run was asked to stop meanwhile.
    """
    me, heard = asdict(Participant.of_this_process(rank, problem=problem)), False
    deadline = time.monotonic() + TELL_SECONDS
    while not stopped() and time.monotonic() < deadline:
        try:
            answer = network.ask(os.environ.get("MASTER_ADDR", "127.0.0.1"), rendezvous_port(), me)
            heard = answer.get("state") == "refused"
        except (OSError, ValueError):
            if heard:
                return True
        time.sleep(POLL)
    return heard or stopped()


# --- several machines -------------------------------------------------------------------------------------------------


def check_output_shared(output: Path, token: str) -> None:
    """Raise UserError unless the run's folder is the one in which rank 0 has left `token`: every rank saves there."""
    deadline = time.monotonic() + SHARED_SECONDS
    while read_token(output) != token:
        if time.monotonic() > deadline:
            raise UserError(
                f"{output} on {socket.gethostname()} is not the folder of that name on the first machine: put "
                "the run on a file system that all machines share"
            )
        time.sleep(POLL)

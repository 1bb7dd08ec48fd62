"""How the ranks come together: they meet at rank 0's store, rank 0 prepares the data, then all form one process group.

They wait at the store and not inside a collective, whose timeout would have to cover hours of tokenizing. What may
block in C++ runs in a thread of its own, so that a signal ends the process at any time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from common.errors import UserError
from training.processes.launchers import DEFAULT_PORT, hosts_of_ranks, idle_hosts, machine_index
from training.processes.lock import read_token
from training.processes.meeting import (
    FAILED,
    LEFT,
    OUTCOME,
    READY,
    STOPPED,
    STORE_TIMEOUT,
    Guest,
    Meeting,
    Participant,
    wait_for_outcome,
)
from training.processes.network import choose_interface, free_port, interruptibly, is_own, own_addresses, resolve
from training.processes.process_group import World
from training.processes.stopping import StoppedEarly
from training.processes.timeouts import Timeouts
from training.processes.watchdog import Watchdog

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# Seconds
CONNECT_SECONDS = 120.0  # for the ranks, which have met, to open connections to each other
RELEASE_SECONDS, RELEASE_MACHINES_SECONDS = 3.0, 10.0  # for the other ranks to read that there will be no run
TELL_SECONDS = 8.0
SHARED_SECONDS = 10.0  # for a network file system to show what another machine has written
POLL_SECONDS = 0.2


def form_process_group(
    world: World,
    device_kind: str,
    prepare: Callable[[], str],
    *,
    facts: Mapping[str, Any] | None = None,
    before_listening: Callable[[], None] = lambda: None,
    watchdog: Watchdog | None = None,
) -> str:
    """Run `prepare` on rank 0 when all ranks are there, form the process group, and return its result on every rank.

    `facts` must be the same on all ranks. Rank 0 calls `before_listening` before it takes the port, which an earlier
    run that is ending may still have. An error is raised on rank 0; the other ranks raise SystemExit(2) without a
    message, or StoppedEarly if rank 0 was asked to stop. The watchdog, if there is one, finds a rank that has died.
    """
    _complete_environment(world)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    comparable = json.loads(json.dumps(facts or {}, default=str))  # as they arrive at another rank
    if world.rank == 0:
        store, master, result = _Host(world, address, port, watchdog).meet(comparable, before_listening, prepare)
    else:
        store, master, result = _join(world, comparable, address, port, watchdog)
    if master:
        choose_interface(master)
    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    try:
        interruptibly(lambda: _init_process_group(world, device_kind, store), CONNECT_SECONDS)
    except FutureTimeoutError:
        raise UserError(
            f"the ranks have met, but {socket.gethostname()} cannot connect to the others: choose the interface "
            "between them with GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs), and look at the firewall between them"
        ) from None
    return result


def _init_process_group(world: World, device_kind: str, store: Store) -> None:
    dist.init_process_group(
        "nccl" if device_kind == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def _complete_environment(world: World) -> None:
    """Set what a launcher would: `python train.py` is a world of one, but DeepSpeed wants that spelled out."""
    os.environ.setdefault("RANK", str(world.rank))
    os.environ.setdefault("WORLD_SIZE", str(world.size))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()) if world.size == 1 else DEFAULT_PORT)


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class _Host:
    """Rank 0's part: opens the store, meets the others, runs `prepare`, and tells them of the result or an error."""

    def __init__(self, world: World, address: str, port: int, watchdog: Watchdog | None) -> None:
        self.world, self.address, self.port, self.watchdog = world, address, port, watchdog
        self.say = watchdog.console.say if watchdog else lambda text: None
        self.seconds = (watchdog.timeouts if watchdog else Timeouts.from_environment()).meet
        self.store: TCPStore | None = None
        self.meeting: Meeting | None = None

    def meet(
        self, facts: dict[str, Any], before_listening: Callable[[], None], prepare: Callable[[], str]
    ) -> tuple[TCPStore, str, str]:
        """Return the store, the address of this machine if there are others, and what `prepare` returned."""
        me = Participant(0, facts)
        try:
            check_master_address(self.address)
            before_listening()
            self.store = self._open_store()
            self.meeting = meeting = Meeting(self.store, me, self.world.size, self.say)
            if idle := idle_hosts():
                self.say(f"{', '.join(idle)}: no slots in the hostfile, so nothing runs there")
            others = meeting.wait_for_all(self.seconds)
            if machines := {me.host, *(other.host for other in others.values())} - {me.host}:
                self.say(f"met: {me.host} and {', '.join(sorted(machines))}")
            if self.watchdog:
                self.watchdog.watch_ranks(self.store, "127.0.0.1", self.port)
            result = prepare()
        except BaseException as error:
            with suppress(UserError, dist.DistError):
                self._release_waiting_ranks(me, STOPPED if isinstance(error, StoppedEarly) else FAILED)
            raise
        self.store.set(OUTCOME, READY + result)
        return self.store, meeting.master, result

    def _open_store(self) -> TCPStore:
        """Open the store on all addresses of this machine."""
        size = self.world.size
        try:
            return TCPStore("127.0.0.1", self.port, size, is_master=True, timeout=STORE_TIMEOUT, wait_for_workers=False)
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            raise UserError(
                f"port {self.port} is in use, perhaps by another run: start this one with "
                f"deepspeed --master_port {free_port()} ..."
            ) from None

    def _release_waiting_ranks(self, me: Participant, outcome: str) -> None:
        """Publish that there will be no run, and stay until the others know: the store goes with this process."""
        store = self.store or self._open_store()
        store.set(OUTCOME, outcome)
        store.set("run", me.encode())
        expected = self.meeting.listeners if self.meeting else self.world.size - 1
        several = self.world.size > self.world.local_size and outcome == FAILED
        deadline = time.monotonic() + (RELEASE_MACHINES_SECONDS if several else RELEASE_SECONDS)
        while store.add(LEFT, 0) < expected and time.monotonic() < deadline:
            time.sleep(0.05)


def check_master_address(address: str) -> None:
    """Raise UserError unless `address` is one of this machine's, at which the others look for rank 0."""
    found = resolve(address)
    if any(map(is_own, found)):
        return
    here, own = socket.gethostname(), own_addresses()
    what = "not an address of this machine" if found else "a name that nobody knows on this machine"
    hosts = set(hosts_of_ranks())
    alone = f", or with --force_multi if it is to run on {hosts.pop()} alone" if len(hosts) == 1 else ""
    raise UserError(
        f"{address} (deepspeed --master_addr, or what it took from the hostfile's first line) is {what}, {here}, which "
        f"has rank 0: start with deepspeed --master_addr {own[0] if own else here}{alone}"
    )


# --- the other ranks --------------------------------------------------------------------------------------------------


def _join(
    world: World, facts: dict[str, Any], address: str, port: int, watchdog: Watchdog | None
) -> tuple[TCPStore, str, str]:
    """Meet rank 0; return the store, the address of rank 0's machine if there are several, and what rank 0 prepared."""
    speaks = watchdog if world.local_rank == 0 else None
    guest = Guest(world.rank, facts, address, port, speaks.console.fail if speaks else lambda text: None)
    seconds = (watchdog.timeouts if watchdog else Timeouts.from_environment()).meet
    try:
        place = interruptibly(lambda: guest.join(seconds))
    except StoppedEarly:
        guest.leaving.set()
        with suppress(FutureTimeoutError, dist.DistError, RuntimeError):
            interruptibly(guest.withdraw, 1.0)
        raise
    if watchdog:
        watchdog.watch_ranks(place.store, place.address, place.port)
    return place.store, place.master, interruptibly(lambda: wait_for_outcome(place.store))


def tell_rank0(rank: int, problem: str) -> None:
    """Let rank 0 know why this rank of another machine does not come, if it is to be found."""
    if rank and machine_index() and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        guest = Guest(rank, {}, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), lambda text: None)
        with suppress(FutureTimeoutError, dist.DistError, RuntimeError, StoppedEarly):
            interruptibly(lambda: guest.tell(problem, TELL_SECONDS), 2 * TELL_SECONDS)


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
        time.sleep(POLL_SECONDS)


def check_corpus_visible(folder: Path) -> None:
    """Raise UserError unless the corpus that rank 0 prepared can be read on this machine too."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not visible on {socket.gethostname()}: prepare the corpus first and put its folder "
            "at the same path on every machine (a shared file system does)"
        )

"""How the ranks meet: rank 0 opens a TCP store and prepares the data, the others wait, then all form one process group.

They wait at the store and not inside a collective, whose timeout would have to cover hours of tokenizing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from common.errors import UserError
from training.processes.heartbeat import pid_namespace
from training.processes.process_group import World
from training.processes.stopping import StoppedEarly
from training.processes.watchdog import Watchdog

PREPARE_TIMEOUT = timedelta(days=1)
CONNECT_TIMEOUT = timedelta(seconds=30)
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
FOREIGN_STORE_SECONDS = 180.0  # for an earlier run to leave the port; rank 0 waits less for it to leave the folder
FAILURE_SECONDS = 3.0  # for the waiting ranks to read that there will be no run
POLL_SECONDS = 0.2

# Rank 0 sets the key to "ready:RESULT", "failed" or "stopped"; each rank that reads one of the last two counts itself.
_OUTCOME, _LEFT = "outcome", "left"
_READY, _FAILED, _STOPPED = "ready:", "failed", "stopped"


def form_process_group(
    world: World,
    device_kind: str,
    prepare: Callable[[], str],
    *,
    before_listening: Callable[[], None] = lambda: None,
    watchdog: Watchdog | None = None,
) -> str:
    """Run `prepare` on rank 0, form the process group, and return the result of `prepare` on every rank.

    Rank 0 calls `before_listening` before it takes the port, which an earlier run that is ending may still have.
    An error is raised on rank 0; the other ranks raise SystemExit(2) without a message, or StoppedEarly if rank 0 was
    asked to stop. The watchdog, if there is one, finds a rank that dies meanwhile.
    """
    _complete_environment(world)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if world.rank == 0:
        store = _prepare_and_serve(world, address, port, prepare, before_listening, watchdog)
    else:
        store = _connect_to_store(address, port, world.rank)
        if watchdog:
            watchdog.watch_ranks(store, address, port)
    result = _wait_for_rank0(store)
    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group(
        "nccl" if device_kind == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return result


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _complete_environment(world: World) -> None:
    """Set what a launcher would: `python train.py` is a world of one, but DeepSpeed wants that spelled out."""
    os.environ.setdefault("RANK", str(world.rank))
    os.environ.setdefault("WORLD_SIZE", str(world.size))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


# --- rank 0 -----------------------------------------------------------------------------------------------------------


def _prepare_and_serve(
    world: World,
    address: str,
    port: int,
    prepare: Callable[[], str],
    before_listening: Callable[[], None],
    watchdog: Watchdog | None,
) -> TCPStore:
    """Open the store, run `prepare`, and publish its result; the waiting ranks hear of an error too."""
    store = None
    try:
        before_listening()
        store = _open_store(world, address, port)
        if watchdog:
            watchdog.watch_ranks(store, address, port)
        result = prepare()
    except BaseException as error:
        with suppress(UserError, dist.DistError):
            outcome = _STOPPED if isinstance(error, StoppedEarly) else _FAILED
            _release_waiting_ranks(store or _open_store(world, address, port), world, outcome)
        raise
    store.set(_OUTCOME, _READY + result)
    return store


def _open_store(world: World, address: str, port: int) -> TCPStore:
    try:
        return TCPStore(address, port, world.size, is_master=True, timeout=PREPARE_TIMEOUT, wait_for_workers=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {port} is in use, perhaps by another run: start this one with "
            f"deepspeed --master_port {_free_port()} ..."
        ) from None


def _release_waiting_ranks(store: Store, world: World, outcome: str) -> None:
    """Publish that there will be no run, and stay until the others know: the store goes with this process."""
    store.set(_OUTCOME, outcome)
    deadline = time.monotonic() + FAILURE_SECONDS
    while store.add(_LEFT, 0) < world.size - 1 and time.monotonic() < deadline:
        time.sleep(0.05)


# --- the other ranks --------------------------------------------------------------------------------------------------


def _connect_to_store(address: str, port: int, rank: int) -> TCPStore:
    """Connect to rank 0's store, and only to that of this very run.

    An earlier run that is still ending may have the port; the store then has that run's rank of the same number.
    """
    identity = f"{pid_namespace()} {os.getpid()} {time.time()}"
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        _wait_until_reachable(address, port)
        try:
            store = TCPStore(address, port, is_master=False, timeout=CONNECT_TIMEOUT, wait_for_workers=False)
            if store.compare_set(f"rank/{rank}", "", identity).decode() == identity:
                store.set_timeout(PREPARE_TIMEOUT)
                return store
            deadline = deadline or time.monotonic() + FOREIGN_STORE_SECONDS
        except dist.DistError:
            deadline = None  # the other run has just ended
        time.sleep(POLL_SECONDS)
    raise UserError(
        f"{address}:{port} belongs to another run: start this one with deepspeed --master_port {_free_port()} ..."
    )


def _wait_until_reachable(address: str, port: int) -> None:
    """Wait until rank 0 listens, in steps that are short enough to notice a signal."""
    deadline = time.monotonic() + PREPARE_TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"rank 0 cannot be reached at {address}:{port} ({error}): check that it was started, and "
                    "--master_addr, --master_port and the firewall between the machines"
                ) from None
        time.sleep(POLL_SECONDS)


def _wait_for_rank0(store: Store) -> str:
    """Return what rank 0 prepared. Wait in steps, because no signal is noticed inside the store."""
    while not store.check([_OUTCOME]):
        time.sleep(POLL_SECONDS)
    outcome = store.get(_OUTCOME).decode()
    if outcome.startswith(_READY):
        return outcome.removeprefix(_READY)
    store.add(_LEFT, 1)
    if outcome == _STOPPED:
        raise StoppedEarly("another process was asked to stop")
    raise SystemExit(2)


# --- several machines -------------------------------------------------------------------------------------------------


def check_output_shared(output: Path, visible: bool) -> None:
    """Raise UserError unless the run's folder, which rank 0 has made, is `visible` here: every rank saves into it."""
    if not visible:
        raise UserError(
            f"{output} on {socket.gethostname()} is not the folder of that name on the first machine: put "
            "the run on a file system that all machines share"
        )


def check_corpus_visible(folder: Path) -> None:
    """Raise UserError unless the corpus that rank 0 prepared can be read on this machine too."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not visible on {socket.gethostname()}: prepare the corpus first and put its folder "
            "at the same path on every machine (a shared file system does)"
        )

"""The process group: joined once, after rank 0 has made the data ready."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError
from training.processes.failure_detector import place
from training.processes.stopping import StoppedEarly
from training.processes.watchdog import Watchdog

PREPARE_TIMEOUT = timedelta(days=1)
CONNECT_TIMEOUT = timedelta(seconds=30)
FOREIGN_WAIT = 180.0  # seconds for an earlier run to leave the port; rank 0 waits less for it to leave the folder
DISMISS_WAIT = 3.0  # seconds for the ranks that wait to hear that there will be no run
POLL = 0.2  # seconds between looks at rank 0's store
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """Where this process stands; read from the variables that the launcher sets, one process without them."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> World:
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE (DeepSpeed's) or LOCAL_WORLD_SIZE (torchrun's)."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        local = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or size
        return cls(int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)), int(local))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _complete_environment(world: World) -> None:
    """`python train.py` without a launcher is a world of one; DeepSpeed wants it spelled out."""
    defaults = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, str(value))
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def _reach(address: str, port: int) -> None:
    """Wait until rank 0 listens, in steps short enough for a signal to be heard."""
    deadline = time.monotonic() + PREPARE_TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"rank 0 cannot be reached at {address}:{port} ({error})") from None
        time.sleep(POLL)


def _connect(address: str, port: int, rank: int) -> dist.TCPStore:
    """A connection to rank 0's store, and only to that of this very run.

    An earlier run that is still ending may have the port; its own rank of the same number is entered there.
    """
    me = f"{place()} {os.getpid()} {time.time()}"
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        _reach(address, port)
        try:
            store = dist.TCPStore(address, port, is_master=False, timeout=CONNECT_TIMEOUT, wait_for_workers=False)
            if store.compare_set(f"rank/{rank}", "", me).decode() == me:
                store.set_timeout(PREPARE_TIMEOUT)
                return store
            deadline = deadline or time.monotonic() + FOREIGN_WAIT
        except dist.DistError:
            deadline = None  # it has just ended
        time.sleep(POLL)
    raise UserError(
        f"{address}:{port} is another run's: start this one with deepspeed --master_port {_free_port()} ..."
    )


def _serve(world: World, address: str, port: int) -> dist.TCPStore:
    try:
        return dist.TCPStore(address, port, world.size, is_master=True, timeout=PREPARE_TIMEOUT, wait_for_workers=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {port} is taken, by another run perhaps: start this one with deepspeed --master_port "
            f"{_free_port()} ..."
        ) from None


def _dismiss(store: dist.Store, world: World, word: str) -> None:
    """Tell the ranks that wait how it ended, and stay until they know: the store goes with this process."""
    store.set("prepared", word)
    deadline = time.monotonic() + DISMISS_WAIT
    while store.add("dismissed", 0) < world.size - 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _word(error: BaseException) -> str:
    return "stopped" if isinstance(error, StoppedEarly) else "failed"


def _host(
    world: World,
    address: str,
    port: int,
    prepare: Callable[[], str],
    enter: Callable[[], None],
    watchdog: Watchdog | None,
) -> dist.Store:
    """Rank 0's part: the store, once `enter` lets it in, and what `prepare` makes."""
    try:
        enter()
    except BaseException as error:
        with suppress(UserError, dist.DistError):
            _dismiss(_serve(world, address, port), world, _word(error))
        raise
    store = _serve(world, address, port)
    if watchdog:
        watchdog.meet(store, address, port)
    try:
        result = prepare()
    except BaseException as error:
        _dismiss(store, world, _word(error))
        raise
    store.set("prepared", "ready:" + result)
    return store


def _wait(store: dist.Store) -> str:
    """For rank 0's word; in steps, because no signal is heard inside the store."""
    while not store.check(["prepared"]):
        time.sleep(POLL)
    word = store.get("prepared").decode()
    if not word.startswith("ready:"):
        store.add("dismissed", 1)
    return word


def join(
    world: World,
    device_kind: str,
    prepare: Callable[[], str],
    *,
    enter: Callable[[], None] = lambda: None,
    watchdog: Watchdog | None = None,
) -> str:
    """Form the process group; `prepare` runs on rank 0 first, and its result is handed to every rank.

    `enter` runs on rank 0 before the port is taken, for an earlier run that is ending may have it. The others wait at
    the store (not inside a collective, whose time-out would have to cover hours of tokenising). A UserError of rank 0
    is raised there; the other ranks raise SystemExit(2) without a word, or StoppedEarly if rank 0 was asked to stop.
    A rank that dies meanwhile is found by the watchdog, if there is one.
    """
    _complete_environment(world)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if world.rank == 0:
        store = _host(world, address, port, prepare, enter, watchdog)
    else:
        store = _connect(address, port, world.rank)
        if watchdog:
            watchdog.meet(store, address, port)
    answer = _wait(store)
    if answer == "failed":
        raise SystemExit(2)
    if answer == "stopped":
        raise StoppedEarly("another process was asked to stop")
    backend = "nccl" if device_kind == "cuda" else "gloo"
    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return answer.removeprefix("ready:")


def ask_for_large_pages() -> None:
    """Have PyTorch ask for pages of 2 MB, if the kernel has them for who asks; before its first allocation."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Let glibc reuse the large blocks that a step frees instead of returning them to the kernel.

    A step on CPU allocates and frees hundreds of MB (the logits above all), and each return costs page faults at the
    next step: about a sixth of the CPU time of a small model (docs/dev/log.md, also for what it costs in memory). To be
    called when what needs memory only once, such as the preparation of text, is over. Without glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # names of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_max, 0)  # no threshold can be above 32 MB, and larger blocks would be mapped anew each time
    mallopt(m_trim_threshold, 2**30)


def set_threads(world: World, device_kind: str) -> int:
    """Share the machine's cores between its processes; returns the threads of this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // world.local_size)
    if device_kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """All-reduced copy of a small tensor."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool | torch.Tensor, device: torch.device) -> bool:
    """True everywhere if it is true anywhere; a flag on the device need not be read before."""
    value = torch.as_tensor(flag, device=device).float()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def broadcast_from_rank0(world: World, find_out: Callable[[], Any]) -> Any:
    """What rank 0 finds out, on every rank; a UserError of it is raised there, the others end without a word."""
    answer: list[Any] = ["failed"]
    error: UserError | None = None
    if world.rank == 0:
        try:
            answer = ["found", find_out()]
        except UserError as caught:
            error = caught
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, answer)
    if error:
        raise error
    if parts[0] == ["failed"]:
        raise SystemExit(2)
    return parts[0][1]


def check_shared(output: Path, exists: bool) -> None:
    """Every rank writes its share of a checkpoint into the run's folder, which rank 0 has made."""
    if not exists:
        raise UserError(
            f"{output} on {socket.gethostname()} is not the folder of that name on the first machine: put "
            "the run on a file system that all machines share"
        )


def check_visible(path: str, exists: bool) -> None:
    """Rank 0 prepared `path`; on another machine it may not be there."""
    if not exists:
        raise UserError(
            f"{path} is not visible on {socket.gethostname()}: prepare the corpus first and put its folder "
            "at the same path on every machine (a shared file system does)"
        )

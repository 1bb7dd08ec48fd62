"""Addresses and interfaces of this machine, and calls over the network that a signal may interrupt."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from threading import Thread
from typing import TypeVar

import psutil

POLL_SECONDS = 0.2
_PROBE_SECONDS = 2.0
_USELESS = ("lo", "docker", "br-", "veth", "virbr")  # interfaces that lead to no other machine

T = TypeVar("T")


def free_port() -> int:
    """Return a port that nobody on this machine listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def resolve(name: str) -> list[str]:
    """Return the addresses of a host; none if nobody knows it."""
    with suppress(OSError):
        return list(
            dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP))
        )
    return []


def is_own(address: str) -> bool:
    """Return whether `address` is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family) as probe:
        probe.bind((address, 0))
        return True
    return False


def own_addresses() -> list[str]:
    """Return this machine's IPv4 addresses at which others may reach it."""
    return [
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not name.startswith(_USELESS)
    ]


def answer(address: str, port: int) -> str | None:
    """Return the address of `address` that accepts connections at `port`, or None if none answers in time.

    Raise ConnectionRefusedError if the machine is there and nobody listens.
    """
    try:
        with socket.create_connection((address, port), timeout=_PROBE_SECONDS) as connection:
            return str(connection.getpeername()[0])
    except ConnectionRefusedError:
        raise
    except OSError:
        return None


def choose_interface(master: str) -> None:
    """Let gloo and NCCL use the interface that leads to `master`, unless the user has chosen one.

    Without it gloo takes the address of this machine's own name, which Debian writes into /etc/hosts as 127.0.1.1.
    """
    if name := _interface_towards(master):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # = for this very name, not those that begin so


def _interface_towards(master: str) -> str | None:
    """Return the name of the interface with the address that this machine has towards `master`."""
    family = socket.AF_INET6 if ":" in master else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing, and chooses the route
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if any(address.address.partition("%")[0] == own for address in addresses):
                return name
    return None


def interruptibly(call: Callable[[], T], seconds: float | None = None) -> T:
    """Return what `call` returns; it runs in a thread, so that this one notices signals whatever `call` waits for.

    Raise TimeoutError of concurrent.futures after so many seconds; the thread is then left alone.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="rendezvous", daemon=True).start()
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            return future.result(timeout=POLL_SECONDS)
        except FutureTimeoutError:
            if future.done() or (deadline is not None and time.monotonic() > deadline):
                raise

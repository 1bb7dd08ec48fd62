"""Addresses and interfaces of this machine, and questions to rank 0 over the network, one connection each.

A question and its answer are a line of JSON each. Since every question opens a new connection, a link that was cut is
whole again with the next one. All waiting is Python's, so that a signal ends it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import socketserver
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from threading import Thread
from typing import Any

import psutil

# Seconds
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 6.0
_BRIDGES = ("docker", "br-", "veth", "virbr")


class NoAnswerError(TimeoutError):
    """Something accepts connections at the port and does not answer."""


def ask(address: str, port: int, question: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Return what a `Server` at the address answers.

    Raise ConnectionError if nobody listens or the other process ends meanwhile, another OSError if nothing comes back
    (NoAnswerError after the connection was accepted), and ValueError if another kind of program answers.
    """
    with socket.create_connection((address, port), timeout=min(seconds, CONNECT_SECONDS)) as connection:
        connection.settimeout(seconds)
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except TimeoutError:
            raise NoAnswerError(f"{address}:{port} does not answer") from None
    if not line:
        raise ConnectionResetError(f"{address}:{port} has closed the connection")
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError(f"{address}:{port} does not answer as rank 0 does")
    return answer


class Server(socketserver.ThreadingTCPServer):
    """Answers questions at all addresses of this machine, in threads of its own, for as long as the process lives."""

    daemon_threads = True

    def __init__(self, port: int, answer: Callable[[dict[str, Any], str], dict[str, Any]]) -> None:
        """Call `answer` with each question and the address of this machine at which it came."""
        super().__init__(("", port), _Question, bind_and_activate=False)
        self.answer = answer
        self.socket.close()
        self.socket = _listen(port)
        self.port: int = self.socket.getsockname()[1]
        Thread(target=self.serve_forever, name="server", daemon=True).start()


class _Question(socketserver.StreamRequestHandler):
    timeout = ANSWER_SECONDS
    server: Server

    def handle(self) -> None:
        with suppress(OSError, ValueError, TypeError, KeyError):  # it has gone, or is no rank of this version
            question, address = json.loads(self.rfile.readline()), self.request.getsockname()[0]
            answer = self.server.answer(question, address.removeprefix("::ffff:"))
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def _listen(port: int) -> socket.socket:
    """Return a listening socket for IPv6 and IPv4, or for IPv4 where the machine has no IPv6."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise
        return socket.create_server(("", port), backlog=128)


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


def leads_nowhere(addresses: Iterable[str]) -> bool:
    """Return whether one of the addresses is that of a bridge on this machine, such as docker's."""
    return any((_interface_of(address) or "").startswith(_BRIDGES) for address in addresses)


def choose_interface(master: str) -> None:
    """Let gloo and NCCL use the interface that leads to `master`, unless the user has chosen one.

    Without it gloo takes the address of this machine's own name, which Debian writes into /etc/hosts as 127.0.1.1.
    """
    if name := _interface_of(own_address_towards(master)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # = for this very name, not those that begin so


def own_address_towards(other: str) -> str | None:
    """Return the address that this machine has on the route to another; None if there is no route."""
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing, and chooses the route
        return probe.getsockname()[0]
    return None


def _interface_of(own: str | None) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return name
    return None

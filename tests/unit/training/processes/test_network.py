"""Addresses and interfaces of this machine."""

import os
import socket
from contextlib import suppress
from threading import Thread

import pytest

from training.processes.network import (
    NoAnswerError,
    Server,
    ask,
    choose_interface,
    is_own,
    leads_nowhere,
    own_address_towards,
    resolve,
)


def test_own_addresses_are_told_from_others():
    assert is_own("127.0.0.1")
    assert own_address_towards("127.0.0.1") == "127.0.0.1"
    assert not leads_nowhere(["127.0.0.1", "192.0.2.7"])
    assert not is_own("192.0.2.7")  # of documentation
    assert not is_own("no address")


def test_names_are_resolved():
    assert resolve("127.0.0.1") == ["127.0.0.1"]
    assert resolve("no-such-host.invalid") == []


def test_a_question_is_answered_with_the_address_at_which_it_came():
    server = Server(0, lambda question, address: {"doubled": 2 * question["number"], "address": address})
    assert ask("127.0.0.1", server.port, {"number": 21}) == {"doubled": 42, "address": "127.0.0.1"}
    assert ask("127.0.0.2", server.port, {"number": 1})["address"] == "127.0.0.2"
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", server.port, {})


@pytest.mark.parametrize(
    ("reply", "error"), [(None, NoAnswerError), (b"", ConnectionResetError), (b"HTTP/1.0 400\r\n", ValueError)]
)
def test_another_program_at_the_port_is_told_from_rank_0(reply, error):
    """It is silent, closes the connection, or speaks in another way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError), listener.accept()[0] as connection:
                connection.recv(100)
                if reply is None:
                    connection.recv(100)
                connection.sendall(reply or b"")

        thread = Thread(target=serve)
        thread.start()
        with pytest.raises(error):
            ask("127.0.0.1", listener.getsockname()[1], {}, seconds=0.5)
        thread.join()


def test_the_interface_is_chosen_by_the_route_unless_the_user_has(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    choose_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"

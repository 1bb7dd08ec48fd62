"""Addresses and interfaces of this machine."""

import os
import socket

import pytest

from training.processes.network import answer, choose_interface, free_port, is_own, own_addresses, resolve


def test_own_addresses_are_told_from_others():
    assert is_own("127.0.0.1")
    assert all(map(is_own, own_addresses()))
    assert not is_own("192.0.2.7")  # of documentation
    assert not is_own("no address")


def test_names_are_resolved():
    assert resolve("127.0.0.1") == ["127.0.0.1"]
    assert resolve("no-such-host.invalid") == []


def test_who_answers_at_a_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert answer("127.0.0.1", listener.getsockname()[1]) == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        answer("127.0.0.1", free_port())
    assert answer("no-such-host.invalid", 1) is None


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

"""How another rank finds rank 0's run, waits for it, or is refused: real sockets, rank 0 in a thread."""

import socket
import time
from dataclasses import replace
from functools import partial
from threading import Timer

import pytest

from common.errors import UserError
from training.processes import rendezvous
from training.processes.coordinator import Coordinator, Participant
from training.processes.network import Server, free_port
from training.processes.process_group import World
from training.processes.rendezvous import NotAdmittedError, _Joining, _listen, release_from, tell_rank0
from training.processes.stopping import StoppedEarly

FACTS = {"flags": {"seed": 42}}


class Watchdog:
    """Stands in for the real one, which has a console and timeouts."""

    def __init__(self, meet):
        self.said, self.console, self.timeouts, self.meet, self.beat, self.hung = [], self, self, meet, 0.1, 40

    def say(self, text):
        self.said.append(text)

    fail = say

    def watch_ranks(self, ask, rank0):
        assert rank0.rank == 0


class Rank0:
    """Its coordinator and its server."""

    def __init__(self, port=0, **changes):
        me = replace(Participant.of_this_process(0, facts=FACTS), **changes)
        self.coordinator = Coordinator(me, 2, print)
        self.server = Server(port, self.coordinator.answer)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def rank0(monkeypatch):
    monkeypatch.setattr(rendezvous, "ENDING_SECONDS", 1.0)
    found = Rank0()
    yield found
    found.close()


def joining(port, meet=20, facts=FACTS):
    return _Joining(Participant.of_this_process(1, facts=facts), "127.0.0.1", port, Watchdog(meet), speaks=True)


def test_a_rank_hears_what_was_prepared(rank0):
    Timer(0.5, lambda: (rank0.coordinator.wait_for_all(20), publish(rank0, "ready"))).start()
    result, _ = joining(rank0.server.port).join()
    assert result == "data/mine"


def publish(rank0, outcome):
    rank0.coordinator.publish(outcome, result="data/mine", store=1, master="")


@pytest.mark.parametrize(("outcome", "error"), [("failed", SystemExit), ("stopped", StoppedEarly)])
def test_a_failure_of_rank_0_ends_the_others(rank0, outcome, error):
    publish(rank0, outcome)
    with pytest.raises(error):
        joining(rank0.server.port).join()


def test_other_settings_are_refused(rank0):
    with pytest.raises(NotAdmittedError, match=r"flags\.seed is 7 there and 42 here"):
        joining(rank0.server.port, facts={"flags": {"seed": 7}}).join()


def test_rank_0_that_is_not_there_is_waited_for_aloud_and_not_for_ever():
    port = free_port()
    rank = joining(port, meet=0.5)
    with pytest.raises(UserError, match=f"rank 0 cannot be reached at 127.0.0.1:{port}"):
        rank.join()
    assert rank.watchdog.said[0].startswith(f"waiting for rank 0 at 127.0.0.1:{port}, ")


def test_another_run_at_the_port_is_named(rank0):
    rank0.coordinator.answer(question(pid=1))
    rank0.coordinator.wait_for_all(5)
    with pytest.raises(UserError, match=r"belongs to another run \(rank 0 \(process \d+ on .*--master_port"):
        joining(rank0.server.port).join()


def question(**changes):
    return vars(replace(Participant.of_this_process(1, facts=FACTS), **changes))


def test_a_dying_rank_0_of_an_earlier_start_is_waited_out():
    """Ctrl-C during the rendezvous, and the same command again at once."""
    earlier = Rank0(created=0.0)
    publish(earlier, "stopped")
    port, successors = earlier.server.port, []

    def succeed():
        earlier.close()
        successors.append(Rank0(port))
        successors[0].coordinator.wait_for_all(20)
        publish(successors[0], "ready")

    Timer(1.0, succeed).start()
    assert joining(port).join()[0] == "data/mine"
    successors[0].close()


def test_a_rank_that_is_stopped_tells_rank_0(rank0, monkeypatch):
    rank = joining(rank0.server.port)

    def interrupted(seconds):
        raise StoppedEarly("stopped by SIGINT")

    monkeypatch.setattr(rendezvous.time, "sleep", interrupted)
    with pytest.raises(StoppedEarly):
        rank.join()
    with pytest.raises(StoppedEarly, match="another process"):
        rank0.coordinator.wait_for_all(5)


@pytest.fixture
def given_port(monkeypatch):
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_a_rank_that_cannot_take_part_stays_until_rank_0_has_ended(given_port):
    rank0 = Rank0(given_port)
    Timer(1.0, rank0.close).start()
    assert tell_rank0(1, "no data here", lambda: False)
    assert rank0.server.socket.fileno() == -1  # it has ended
    with pytest.raises(UserError, match="cannot take part: no data here"):
        rank0.coordinator.wait_for_all(5)


@pytest.mark.parametrize("met", [False, True])
def test_a_rank_that_cannot_take_part_is_heard_by_nobody(given_port, monkeypatch, met):
    monkeypatch.setattr(rendezvous, "TELL_SECONDS", 1.0)
    rank0 = Rank0(given_port, **({} if met else {"created": 0.0}))  # an earlier start
    if met:
        rank0.coordinator.answer(question(pid=1))
        rank0.coordinator.wait_for_all(5)
    assert not tell_rank0(1, "no data here", lambda: False)
    rank0.close()
    assert not tell_rank0(1, "no data here", lambda: False)
    assert tell_rank0(1, "no data here", lambda: True)  # the launcher ends all, because another rank has failed


def test_ranks_hear_of_a_rank_0_that_fails_before_it_listens(given_port, monkeypatch):
    monkeypatch.setattr(rendezvous, "RELEASE_SECONDS", 20.0)
    Timer(0.1, release_from(World(0, 2, 0, 2)), args=("failed",)).start()
    with pytest.raises(SystemExit):
        joining(given_port).join()


def test_another_program_at_the_port_is_named(monkeypatch):
    """It accepts connections and says nothing."""
    monkeypatch.setattr(rendezvous, "STRANGE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        rank = joining(port, meet=60)
        rank.ask = partial(rank.ask, seconds=0.4)
        with pytest.raises(UserError, match=f"port {port} at 127.0.0.1 is another program's: .*--master_port"):
            rank.join()


def test_a_port_that_is_taken_is_named_with_a_free_one(rank0):
    with pytest.raises(UserError, match=rf"port {rank0.server.port} is in use.*deepspeed --master_port \d+"):
        _listen(rank0.server.port, rank0.coordinator)


def test_an_address_that_is_not_rank_0s_is_refused(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.7")  # of documentation
    monkeypatch.setattr(rendezvous, "RELEASE_MACHINES_SECONDS", 0.0)
    me, world = Participant.of_this_process(0), World(0, 2, 0, 1)
    with pytest.raises(UserError, match=r"^192\.0\.2\.7 .* is not an address of this machine, .*--master_addr \S+$"):
        rendezvous._coordinate(world, me, free_port(), Watchdog(1), lambda: None, lambda: "")


def test_rank_0_that_is_stopped_while_another_is_missing_ends_within_two_seconds(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    me, world, started = Participant.of_this_process(0), World(0, 2, 0, 2), time.monotonic()

    def interrupted(self, seconds):
        raise StoppedEarly("stopped by SIGTERM")

    monkeypatch.setattr(Coordinator, "wait_for_all", interrupted)
    with pytest.raises(StoppedEarly):
        rendezvous._coordinate(world, me, free_port(), Watchdog(1), lambda: None, lambda: "")
    assert time.monotonic() - started < 2

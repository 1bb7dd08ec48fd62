"""Who is let into a run: rank 0 and others in threads of this process, at a real store."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from threading import Timer

import psutil
import pytest
from torch.distributed import TCPStore

from common.errors import UserError
from training.processes import meeting
from training.processes.meeting import (
    FAILED,
    LEFT,
    OUTCOME,
    READY,
    STOPPED,
    Guest,
    Meeting,
    NotAdmittedError,
    Participant,
    wait_for_outcome,
)
from training.processes.network import free_port
from training.processes.stopping import StoppedEarly

FACTS = {"flags": {"seed": 42}}
OTHER = {"flags": {"seed": 7}}
NOW = psutil.Process().create_time()  # when the guests of this process were started


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No launcher, starts of this very moment, and little patience."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(meeting, "POLL", 0.01)
    monkeypatch.setattr(meeting, "FOREIGN", 0.3)
    monkeypatch.setattr(meeting, "SUCCESSOR", 1.0)
    monkeypatch.setattr(meeting, "ENDING", 30.0)
    monkeypatch.setattr(meeting, "CONNECT_TIMEOUT", timedelta(seconds=1))


class Place:
    """A store of rank 0's, and the threads of the others."""

    def __init__(self):
        self.port, self.said, self.pool = free_port(), [], ThreadPoolExecutor(8)
        self.store = TCPStore(
            "127.0.0.1", self.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5)
        )

    def meeting(self, size=2, **changes):
        return Meeting(self.store, replace(Participant(0, FACTS, started=NOW), **changes), size, self.said.append)

    def join(self, rank=1, facts=FACTS, seconds=5):
        guest = Guest(rank, facts, "127.0.0.1", self.port, self.said.append)
        return guest, self.pool.submit(guest.join, seconds)

    def claim(self, number, **changes):
        """What a rank, perhaps of an earlier start, has left at the store."""
        self.store.add("claims", 1)
        claimant = replace(Participant(1, FACTS, started=NOW), **changes)
        self.store.set(f"claim/{number}", claimant.encode())

    def answer(self, number):
        return self.store.get(f"answer/{number}").decode() if self.store.check([f"answer/{number}"]) else ""


@pytest.fixture
def place():
    found = Place()
    yield found
    found.pool.shutdown(wait=True, cancel_futures=True)


def test_all_ranks_meet_and_hear_what_was_prepared(place):
    meeting = place.meeting(3)
    joining = [place.join(rank)[1] for rank in (1, 2)]
    assert sorted(meeting.wait_for_all(5)) == [1, 2]
    place.store.set(OUTCOME, READY + "data/mine")
    for joined in joining:
        admission = joined.result(5)
        assert admission.master == ""  # one machine
        assert wait_for_outcome(admission.store) == "data/mine"


def test_other_settings_of_the_same_start_end_the_run_with_what_differs(place):
    meeting = place.meeting()
    _, joined = place.join(facts=OTHER)
    said = r"rank 1 \(process \d+ on \S+\) was not started as rank 0 on \S+ was: flags.seed is 7 there and 42 here"
    with pytest.raises(UserError, match=said):
        meeting.wait_for_all(5)
    with pytest.raises(NotAdmittedError, match=said):
        joined.result(5)


def test_a_stale_rank_with_other_settings_is_turned_away(place):
    meeting = place.meeting()
    place.claim(1, facts=OTHER, started=NOW - 100)
    place.claim(2)
    assert meeting.wait_for_all(5)[1].facts == FACTS
    assert "flags.seed is 7" in place.answer(1)
    assert place.answer(2) == ""
    assert "turned away" in place.said[0]


@pytest.mark.parametrize("first", ["stale", "right"])
def test_of_two_with_the_same_settings_the_one_of_this_start_is_taken(place, first):
    meeting = place.meeting(3)
    ages = [100, 1] if first == "stale" else [1, 100]
    for number, age in enumerate(ages, 1):
        place.claim(number, started=NOW - age, pid=age)
    place.claim(3, rank=2)
    assert meeting.wait_for_all(5)[1].pid == 1
    stale = 1 + ages.index(100)
    assert place.answer(stale).startswith("rank 1 (process 1 on ")
    assert place.answer(3 - stale) == ""


def test_the_rank_of_this_start_may_come_after_a_stale_one(place):
    meeting = place.meeting()
    place.claim(1, started=NOW - 100, pid=100)
    Timer(0.5, place.claim, (2,), {"pid": 1}).start()
    assert meeting.wait_for_all(5)[1].pid == 1
    assert "has taken the place of" in place.answer(1)


def test_a_rank_that_someone_started_by_hand_long_ago_is_let_in(place):
    meeting = place.meeting()
    place.claim(1, started=NOW - 100, pid=100)
    assert meeting.wait_for_all(5)[1].pid == 100


def test_a_rank_of_another_launcher_on_the_same_machine_is_never_nearer(place):
    meeting = place.meeting(3, launcher="launch.py 1")
    place.claim(1, launcher="launch.py 2", pid=2)
    place.claim(2, launcher="launch.py 1", pid=1, started=NOW - 30)
    place.claim(3, rank=2)
    assert meeting.wait_for_all(5)[1].pid == 1


def test_a_rank_that_cannot_take_part_says_why(place):
    meeting = place.meeting()
    place.claim(1, problem="no data here", host="mB")
    with pytest.raises(UserError, match=r"^rank 1 \(process \d+ on mB\) cannot take part: no data here$"):
        meeting.wait_for_all(5)


def test_a_rank_that_does_not_come_is_waited_for_aloud_and_not_for_ever(place, monkeypatch):
    monkeypatch.setattr(meeting, "hosts_of_ranks", lambda: ["mA", "mB"])
    with pytest.raises(UserError, match=r"^rank 1 \(mB\) did not come within \d+ s: check that `ssh mB hostname`"):
        place.meeting().wait_for_all(0.5)
    assert place.said[0].startswith("waiting for rank 1 (mB), ")


def test_rank_0_that_is_not_there_is_waited_for_aloud_and_not_for_ever():
    said, port = [], free_port()
    with pytest.raises(NotAdmittedError, match=f"rank 0 cannot be reached at 127.0.0.1:{port}"):
        Guest(1, FACTS, "127.0.0.1", port, said.append).join(0.5)
    assert said[0].startswith(f"waiting for rank 0 at 127.0.0.1:{port}, ")


def test_a_run_that_has_begun_lets_nobody_in(place):
    meeting = place.meeting()
    place.claim(1)
    meeting.wait_for_all(5)
    _, late = place.join()
    with pytest.raises(NotAdmittedError, match=r"belongs to another run \(rank 0 \(process \d+ on .*--master_port"):
        late.result(5)
    assert place.store.add("claims", 0) == 1


@pytest.mark.parametrize(("outcome", "error"), [(FAILED, SystemExit), (STOPPED, StoppedEarly)])
def test_a_failure_of_rank_0_reaches_the_ranks_of_its_start(place, outcome, error):
    place.store.set(OUTCOME, outcome)
    place.meeting()
    with pytest.raises(error):
        raise_in_this_thread(place.join()[1])
    assert place.store.add(LEFT, 0) == 1


def raise_in_this_thread(future):
    error = future.exception(5)
    assert error is not None
    raise error


def test_the_dying_store_of_an_earlier_start_is_waited_out(place):
    """Ctrl-C while the ranks meet, and the same command again at once."""
    place.store.set(OUTCOME, STOPPED)
    place.meeting(started=NOW - 100)
    _, joining = place.join(seconds=60)
    time.sleep(0.3)
    assert not joining.done()
    del place.store
    successor = None
    while successor is None:
        with suppress(Exception):  # the port is being freed
            successor = TCPStore("127.0.0.1", place.port, is_master=True, wait_for_workers=False)
    place.store = successor
    assert list(place.meeting().wait_for_all(60)) == [1]
    assert joining.result(20).port == place.port


def test_a_rank_that_is_stopped_takes_the_others_along(place):
    meeting = place.meeting(3)
    guest, joining = place.join()
    while not meeting.members:
        meeting._read_claims()
    guest.leaving.set()
    joining.exception(5)
    guest.withdraw()
    with pytest.raises(StoppedEarly):
        meeting.wait_for_all(5)


@pytest.mark.slow
def test_another_program_at_the_port_is_named(monkeypatch):
    """It accepts connections and says nothing."""
    monkeypatch.setattr(meeting, "ENDING", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(NotAdmittedError, match="another program has the port: start with deepspeed --master_port"):
            Guest(1, FACTS, "127.0.0.1", listener.getsockname()[1], print).join(60)

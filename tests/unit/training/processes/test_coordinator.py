"""Who is let into a run by rank 0, and what its coordinator answers."""

import os
import time
from dataclasses import asdict, replace
from threading import Timer

import psutil
import pytest

from common.errors import UserError
from training.processes import coordinator
from training.processes.coordinator import Coordinator, Participant
from training.processes.heartbeat import Failure, Heartbeat
from training.processes.stopping import StoppedEarly

FACTS = {"flags": {"seed": 42}}
OTHER = {"flags": {"seed": 7}}
NOW = psutil.Process().create_time()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(coordinator, "POLL", 0.01)
    monkeypatch.setattr(coordinator, "SUCCESSOR", 1.0)


class Place:
    """Rank 0, and what others ask of it: each with a number of its own for its process."""

    def __init__(self, size=2, **changes):
        self.said = []
        self.coordinator = Coordinator(replace(participant(0), **changes), size, self.said.append)

    def ask(self, rank=1, **changes):
        answer = self.coordinator.answer(asdict(participant(rank, **changes)))
        assert Heartbeat.from_json(answer.pop("rank0")) == self.coordinator.me.first_heartbeat()
        return answer

    def beat(self, rank=1, **changes):
        """What the others said last, for a heartbeat of a rank."""
        known = self.coordinator.members[rank].first_heartbeat()
        return self.coordinator.answer({"heartbeat": asdict(replace(known, **changes))})

    def wait(self, seconds=5):
        self.coordinator.wait_for_all(seconds)
        return {rank: member.pid for rank, member in self.coordinator.members.items() if rank}


def participant(rank, **changes):
    return replace(Participant.of_this_process(rank, facts=FACTS), **{"pid": 100 + rank, "created": NOW} | changes)


def test_all_ranks_meet_and_hear_what_was_prepared():
    place = Place(3)
    assert place.ask(1)["state"] == place.ask(2)["state"] == "waiting"
    assert place.wait() == {1: 101, 2: 102}
    assert place.ask(1)["state"] == "met"
    met = place.beat(0, beat=1)["heartbeats"]
    assert [(beat["rank"], beat["pid"], beat["beat"]) for beat in met] == [(1, 101, 0), (2, 102, 0)]
    place.coordinator.publish("ready", result="data/mine")
    assert place.ask(2) == {"state": "ready", "result": "data/mine"}


def test_other_settings_of_the_same_start_end_the_run_with_what_differs():
    place = Place()
    said = f"rank 1 (process 101 on {participant(1).host}) was not started as rank 0 on {participant(0).host} was: "
    said += "flags.seed is 7 there and 42 here"
    assert place.ask(facts=OTHER) == {"state": "refused", "text": said}
    with pytest.raises(UserError) as error:
        place.wait()
    assert str(error.value).startswith(said)


def test_a_stale_rank_with_other_settings_is_refused():
    place = Place()
    assert "flags.seed is 7" in place.ask(facts=OTHER, created=NOW - 100)["text"]
    place.ask()
    assert place.wait() == {1: 101}
    assert "refused; still waiting for rank 1" in place.said[0]


@pytest.mark.parametrize("first", ["stale", "right"])
def test_of_two_with_the_same_settings_the_one_of_this_start_is_taken(first):
    place = Place(3)
    place.ask(2)
    for pid in (9, 1) if first == "stale" else (1, 9):
        place.ask(pid=pid, created=NOW - 10 * pid)
    assert place.wait() == {1: 1, 2: 102}


def test_the_rank_of_this_start_may_come_after_a_stale_one():
    place = Place()
    place.ask(pid=9, created=NOW - 100)
    Timer(0.3, place.ask, kwargs={"pid": 1}).start()
    assert place.wait() == {1: 1}


def test_a_stale_rank_is_refused_when_its_place_is_taken():
    place = Place()
    place.ask(pid=1)
    assert "(process 1 on " in place.ask(pid=9, created=NOW - 100)["text"]


def test_a_rank_that_someone_started_by_hand_long_ago_is_let_in():
    place = Place()
    place.ask(created=NOW - 100)
    assert place.wait() == {1: 101}


def test_a_rank_of_another_launcher_on_the_same_machine_is_refused():
    place = Place(launcher="launch.py 1")
    assert "is of another launch" in place.ask(launcher="launch.py 2", pid=2)["text"]
    place.ask(launcher="launch.py 1", created=NOW - 30)
    assert place.wait() == {1: 101}


def test_a_rank_that_cannot_take_part_says_why():
    place = Place()
    place.ask(problem="no data here", host="mB")
    with pytest.raises(UserError, match=r"^rank 1 \(process 101 on mB\) cannot take part: no data here$"):
        place.wait()


def test_a_rank_that_does_not_come_is_waited_for_aloud_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(coordinator, "hosts_of_ranks", lambda: ["mA", "mB"])
    place = Place()
    with pytest.raises(UserError, match=r"^rank 1 \(mB\) did not come within \d+ s: check that `ssh mB hostname`"):
        place.wait(0.5)
    assert place.said[0].startswith("waiting for rank 1 (mB), ")


def test_a_run_that_has_begun_lets_nobody_in():
    place = Place()
    place.ask()
    place.wait()
    assert place.ask(pid=9) == place.beat(1, pid=9) == {"state": "busy"}


@pytest.mark.parametrize("outcome", ["failed", "stopped"])
def test_a_failure_of_rank_0_reaches_the_ranks_of_its_start_alone(outcome):
    place = Place()
    place.coordinator.publish(outcome)
    assert place.ask(created=NOW - 100)["state"] == "busy"
    assert place.ask()["state"] == outcome


def test_rank_0_stays_until_the_others_have_asked_once_more_or_have_ended():
    place = Place(3)
    place.ask(1)
    place.ask(2, pid=os.getpid())  # a process that lives
    place.wait()
    place.beat(1, beat=1, ended=True)
    started = time.monotonic()
    place.coordinator.wait_until_read(0.3)
    assert time.monotonic() - started > 0.2
    Timer(0.3, place.beat, args=(2,)).start()
    place.coordinator.wait_until_read(20)
    assert time.monotonic() - started < 10


def test_rank_0_waits_less_for_ranks_that_have_never_asked():
    place = Place(3)
    place.ask(2, pid=os.getpid())  # a process that lives
    Timer(0.3, place.ask, args=(2,), kwargs={"pid": os.getpid()}).start()
    started = time.monotonic()
    place.coordinator.wait_until_read(20, absent_seconds=0.1)
    assert 0.2 < time.monotonic() - started < 10


def test_a_rank_that_is_stopped_takes_the_others_along():
    place = Place(3)
    place.ask(1)
    place.ask(1, stopped=True)
    with pytest.raises(StoppedEarly):
        place.wait()


def test_a_rank_of_an_earlier_start_that_is_stopped_leaves_its_place():
    place = Place()
    place.ask(pid=9, created=NOW - 100)
    place.ask(pid=9, created=NOW - 100, stopped=True)
    place.ask(pid=1)
    assert place.wait() == {1: 1}


def test_heartbeats_are_exchanged():
    place = Place(3)
    place.ask(1)
    place.ask(2)
    place.wait()
    failure = asdict(Failure("died", (2,), "rank 2 has died"))
    place.beat(1, beat=5, failure=failure)
    place.beat(1, beat=4)  # it was held up on its way
    heard = {beat["rank"]: beat for beat in place.beat(2, beat=5)["heartbeats"]}
    assert {rank: (beat["beat"], beat["failure"]) for rank, beat in heard.items()} == {0: (0, None), 1: (5, failure)}

"""What one rank finds of the others, with invented heartbeats and an invented clock."""

from dataclasses import replace

import pytest

from training.processes.failure_detector import FailureDetector
from training.processes.heartbeat import Failure, Heartbeat, ProcessState, Timeouts

LOCAL = ProcessState()


class Others:
    """Three ranks on one machine, as rank `me` sees them: a check a second, each after an answer unless `deaf`."""

    def __init__(self, me=0, size=3):
        self.me, self.states = me, dict.fromkeys(range(size), LOCAL)
        self.heartbeats = {
            rank: Heartbeat(rank, "host", "namespace", 100 + rank, 0, ticks=1, activity="training", timeout=45.0)
            for rank in range(size)
        }
        self.silent, self.still = set(), set(self.heartbeats)
        self.detector = FailureDetector(me, size, Timeouts(), lambda beat: self.states[beat.rank])

    def change(self, rank, **values):
        self.heartbeats[rank] = replace(self.heartbeats[rank], **values)

    def pass_seconds(self, seconds, deaf=False, broken=False):
        """The first failure, and the seconds until then."""
        for second in range(seconds):
            for rank, old in self.heartbeats.items() if not deaf else ():
                self.change(rank, beat=old.beat + (rank not in self.silent), ticks=old.ticks + (rank not in self.still))
            if failure := self.check(answered=not deaf, refused=broken):
                return failure, second + 1
        return None, seconds

    def check(self, **more):
        return self.detector.check(1.0, [*self.heartbeats.values()], **more)


@pytest.fixture
def others():
    return Others()


def test_ranks_at_work_are_left_alone(others):
    others.still = set()
    assert others.pass_seconds(10_000) == (None, 10_000)


def test_a_process_that_is_gone_has_died_though_it_was_just_heard_of(others):
    others.pass_seconds(5)
    others.silent.add(2)
    others.states[2] = ProcessState(gone=True)
    failure, seconds = others.pass_seconds(60)
    assert (failure.kind, failure.ranks, seconds) == ("died", (2,), 2)
    assert failure.message.startswith("rank 2 (process 102 on host) has died while training")


def test_a_process_that_said_goodbye_before_it_was_gone_has_not_died(others):
    others.pass_seconds(5)
    others.states[2] = ProcessState(gone=True)
    assert others.pass_seconds(1) == (None, 1)
    others.change(2, ended=True)
    assert others.pass_seconds(1000) == (None, 1000)


def test_two_that_die_together_are_named_together(others):
    others.pass_seconds(5)
    others.silent = {1, 2}
    others.states |= {1: ProcessState(gone=True), 2: ProcessState(gone=True)}
    failure, _ = others.pass_seconds(5)
    assert failure.ranks == (1, 2)
    assert "rank 1 (process 101 on host) and rank 2 (process 102 on host) have died" in failure.message


@pytest.mark.parametrize("state", [None, ProcessState(stopped=True)], ids=["another machine", "stopped"])
def test_silence_is_judged_after_40_seconds_and_not_before(others, state):
    others.states[1] = state
    others.pass_seconds(5)
    others.silent.add(1)
    assert others.pass_seconds(39) == (None, 39)
    failure, _ = others.pass_seconds(1)
    assert (failure.kind, failure.ranks) == ("hung", (1,))
    assert ("its process is stopped" in failure.message) == (state is not None)


def test_twenty_seconds_of_silence_are_waited_for_again_and_again(others):
    others.still = set()
    for _ in range(20):
        others.silent = {1}
        assert others.pass_seconds(20) == (None, 20)
        others.silent = set()
        assert others.pass_seconds(1) == (None, 1)


def test_silence_on_another_machine_is_believed_sooner_once_a_collective_has_failed(others):
    others.states[1] = None
    others.pass_seconds(5)
    others.silent.add(1)
    others.change(2, collective_failed=True)
    assert others.pass_seconds(60)[1] < 10


def test_a_process_at_work_that_does_not_speak_is_given_more_time(others):
    others.pass_seconds(5)
    others.silent.add(1)
    for second in range(200):
        others.states[1] = ProcessState(cpu=second * 0.9)
        assert others.pass_seconds(1) == (None, 1)
    failure, _ = others.pass_seconds(100)
    assert failure.ranks == (1,)


def test_a_rank_0_that_does_not_answer_makes_nobody_else_suspect():
    others = Others(me=1)
    others.pass_seconds(5)
    assert others.pass_seconds(39, deaf=True) == (None, 39)
    assert others.pass_seconds(20) == (None, 20)
    failure, seconds = others.pass_seconds(60, deaf=True)
    assert (failure.kind, failure.ranks, seconds) == ("hung", (0,), 40)


def test_a_lost_connection_is_rank_0_within_seconds():
    others = Others(me=1)
    others.states[0] = None
    others.pass_seconds(5)
    failure, seconds = others.pass_seconds(60, deaf=True, broken=True)
    assert (failure.kind, failure.ranks) == ("died", (0,))
    assert seconds < 10


def test_a_lost_connection_after_rank_0_has_left_is_the_end():
    others = Others(me=1)
    others.change(0, ended=True)
    others.pass_seconds(5)
    others.states[0] = ProcessState(gone=True)
    others.states[2] = ProcessState(gone=True)
    assert others.pass_seconds(600, deaf=True, broken=True) == (None, 600)


def test_nothing_moves(others):
    others.change(1, in_collective=True)
    others.change(2, in_collective=True, activity="saving")
    others.change(0, location="loop.py:1 (f)")
    failure, seconds = others.pass_seconds(100)
    assert (failure.kind, failure.ranks, seconds) == ("stuck", (0,), 46)
    assert "rank 0 (process 100 on host) while training, in loop.py:1 (f)" in failure.message


def test_the_rank_with_the_fewest_ticks_is_named_where_all_seem_to_wait(others):
    others.change(0, ticks=7)
    others.change(2, ticks=6)
    failure, _ = others.pass_seconds(100)
    assert failure.ranks == (1,)


@pytest.mark.parametrize(
    "values",
    [{"timeout": 500.0}, {"at_terminal": True}, {"ticks": 0}, {"ended": True}],
    ids=lambda values: next(iter(values)),
)
def test_standing_still_for_a_reason(others, values):
    others.still = {0, 1, 2}
    others.change(1, **values)
    others.pass_seconds(1)
    assert others.pass_seconds(400) == (None, 400)


def test_one_that_moves_is_enough(others):
    others.still = {0, 2}
    assert others.pass_seconds(400) == (None, 400)


def test_a_rank_that_was_stopped_for_long_is_not_called_stuck_when_it_returns(others):
    others.still = {0, 1, 2}
    others.states[1] = ProcessState(stopped=True)
    others.pass_seconds(5)
    others.silent.add(1)
    others.pass_seconds(35)
    others.silent = set()
    assert others.pass_seconds(30) == (None, 30)


def test_only_rank_0_judges_the_others_but_by_their_processes():
    others = Others(me=1)
    others.pass_seconds(5)
    others.silent = {2}
    assert others.pass_seconds(400) == (None, 400)
    others.states[2] = ProcessState(gone=True)
    assert others.pass_seconds(5)[0].kind == "died"


def test_what_another_rank_has_found_or_met_is_taken_up(others):
    found = Failure("failed", (2,), "rank 2 has failed: no such file", 2)
    others.change(2, ended=True, failure=found)
    assert others.pass_seconds(1) == (found, 1)


@pytest.mark.parametrize("me", [0, 1], ids=["others are silent", "rank 0 is silent"])
def test_collectives_that_finish_are_a_sign_of_life(me):
    """After a cut of the link, training goes on before heartbeats do."""
    others = Others(me)
    others.pass_seconds(5)

    def check(collectives):
        others.change(me, collectives=collectives)
        return others.check(answered=me == 0, refused=False)

    assert not any(check(second // 30) for second in range(120))
    failures = [check(4) for _ in range(45)]
    assert next(failure for failure in failures if failure).kind == "hung"

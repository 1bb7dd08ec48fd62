"""`--tune`: which trials it takes on a machine of given speeds, and what it writes; trials that go wrong."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from model import ModelConfig
from training.config.command_line import Options
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts
from training.planning import tune_trial
from training.planning.micro_batch import Memory
from training.planning.plan import PLANNED_T4X2
from training.planning.tune import Tuner, tune
from training.planning.tune_trial import Measured, Work, run_trial

CONFIG = Path(__file__).parents[4] / "ds_configs" / "t4x2.json"
DENSE = ModelConfig(hidden_size=64, num_hidden_layers=1, use_moe=False, vocab_size=512, intermediate_size=96)
OUT_OF_MEMORY = Measured(problem="out of memory")


class Candidate(NamedTuple):
    """What a trial may change."""

    micro_batch: int
    zero_stage: int
    overlap_comm: bool


class Machine:
    """Answers trials by `speed`, a function of a Candidate that returns tokens a second, or a Measured."""

    def __init__(self, speed):
        self.speed, self.tried = speed, []

    def __call__(self, work, processes, _timeout):
        resolved = work.resolved
        overlapped = resolved.block("zero_optimization")["overlap_comm"]
        candidate = Candidate(resolved.micro_batch, resolved.zero_stage, overlapped)
        self.tried.append(candidate)
        assert resolved.micro_batch * resolved.accumulation * processes == resolved.train_batch == 256
        answer = self.speed(candidate)
        return answer if isinstance(answer, Measured) else Measured(256 * 64 / answer, 2**30)


def tuner(machine, *, model=DENSE, minutes=60.0, said=None):
    facts = RunFacts(2, 1.0, None, Path("runs/x"), model)
    return Tuner(
        load(CONFIG, []),
        lambda config: check(config, facts, PLANNED_T4X2, source="t4x2.json"),
        Memory(model, PLANNED_T4X2, 2, seq_len=64),
        Path("data/x"),
        Options(tune=minutes),
        say=(said if said is not None else []).append,
        try_out=machine,
    )


def chosen(tuner):
    return tuple(tuner.run().choices.values())


def test_it_goes_up_to_the_largest_micro_batch_that_fits():
    machine = Machine(lambda candidate: OUT_OF_MEMORY if candidate.micro_batch > 64 else candidate.micro_batch * 100)
    found = tuner(machine)
    assert chosen(found) == (64, 2, True)
    assert [c.micro_batch for c in machine.tried[:3]] == [32, 64, 128]
    assert {c.micro_batch for c in machine.tried[3:]} == {32, 64}  # other settings of the best, then in turn
    assert next(trial for trial in found.trials if trial.settings.micro_batch == 128).problem == "out of memory"


def test_it_goes_down_where_smaller_ones_are_faster_or_the_first_does_not_fit():
    assert chosen(tuner(Machine(lambda c: 1000 / c.micro_batch))) == (1, 2, True)
    fits = tuner(Machine(lambda c: OUT_OF_MEMORY if c.micro_batch > 8 else 100 + c.micro_batch))
    assert chosen(fits) == (8, 2, True)


def test_zero_and_overlap_are_tried_at_the_best_micro_batch():
    machine = Machine(lambda c: 100 + 50 * (c.zero_stage == 1) + 50 * (not c.overlap_comm))
    assert chosen(tuner(machine)) == (32, 1, False)
    machine = Machine(lambda c: 100 + 50 * (not c.overlap_comm))
    split = replace(DENSE, use_moe=True, ep_size=2, moe_intermediate_size=48)
    tuner(machine, model=split).run()
    assert all(candidate.overlap_comm for candidate in machine.tried)  # two communicators at once may hang


def test_a_lead_that_does_not_last_is_no_lead():
    seen = []

    def speed(candidate):
        seen.append(candidate)
        first_time = seen.count(candidate) == 1
        return {64: 130 if first_time else 60}.get(candidate.micro_batch, 100)

    found = tuner(Machine(speed))
    assert found.run() is found.trials[0]


def test_a_lead_that_noise_could_give_is_no_lead():
    """The other is faster in the mean, but not every time."""
    tries = {32: iter([100, 105, 100]), 64: iter([130, 104, 130])}

    def speed(candidate):
        return next(tries.get(candidate.micro_batch, iter([50])), 50)

    found = tuner(Machine(speed))
    found._other_settings = lambda settings: []
    assert found.run() is found.trials[0]
    assert [len(trial.tokens_per_second) for trial in found.trials[:2]] == [3, 3]


def test_without_time_the_first_trial_is_the_only_one():
    machine = Machine(lambda candidate: candidate.micro_batch)
    found = tuner(machine, minutes=0.0)
    assert found.run() is found.trials[0]
    assert len(machine.tried) == 1


def test_the_winner_is_a_complete_file_and_every_trial_is_written(tmp_path):
    said = []
    found = tuner(Machine(lambda c: 100 + c.micro_batch * (c.micro_batch <= 64)), said=said)
    assert tune(found, CONFIG, tmp_path / "run", tmp_path) == 0
    written = load(tmp_path / "tuned-t4x2.json", [])
    before = load(CONFIG, [])
    assert {key for key in written if written[key] != before.get(key)} == {
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    }
    assert (written["train_micro_batch_size_per_gpu"], written["gradient_accumulation_steps"]) == (64, 2)
    report = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert report["changes"] == {"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 2}
    assert [trial["micro_batch"] for trial in report["trials"][:3]] == [32, 64, 128]
    assert any("wrote" in line and "gradient_accumulation_steps=2" in line for line in said)
    tune(tuner(Machine(lambda c: 100 + (c.micro_batch == 64) * 50), said=said), CONFIG, tmp_path / "run", tmp_path)
    assert any("replaced" in line for line in said)


def test_nothing_is_written_where_the_first_is_the_fastest_or_nothing_runs(tmp_path):
    said = []
    assert tune(tuner(Machine(lambda _: 100), said=said), CONFIG, tmp_path / "run", tmp_path) == 0
    assert "stays: nothing was faster every time" in said[-1]
    assert tune(tuner(Machine(lambda _: OUT_OF_MEMORY), said=said), CONFIG, tmp_path / "run", tmp_path) == 1
    assert "out of memory" in said[-1]
    assert not list(tmp_path.glob("tuned-*"))


def test_an_interruption_keeps_what_was_measured(tmp_path):
    def speed(candidate):
        if candidate.micro_batch == 64:
            raise KeyboardInterrupt
        return 100

    with pytest.raises(KeyboardInterrupt):
        tune(tuner(Machine(speed)), CONFIG, tmp_path, tmp_path)
    assert json.loads((tmp_path / "tune.json").read_text())["trials"][0]["tokens_per_second"] == 100


# --- one trial --------------------------------------------------------------------------------------------------------


def work(**changes):
    """A trial of a corpus that is not there."""
    model = replace(DENSE, **changes)
    facts = RunFacts(1, 1.0, None, Path("runs/x"), model)
    config = load(CONFIG, ["train_batch_size=auto", "fp16.enabled=false"])
    resolved = check(config, facts, PLANNED_T4X2, source="t4x2.json").unscheduled()
    return Work(Options(max_seq_len=64), model, resolved, Path("data/nowhere"))


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (ProcessRaisedException("Traceback:\nValueError: no such thing\n", 1, 0), "failed: ValueError: no such thing"),
        (ProcessExitedException("", 0, 0, -9), "killed, perhaps for lack of memory"),
        (ProcessExitedException("", 0, 0, 1), "out of memory"),  # as its rank has said
        (None, "did not end in 0 s"),
    ],
)
def test_a_trial_that_goes_wrong_is_no_more_than_a_line(monkeypatch, failure, problem):
    class Process:
        def kill(self):
            ended.append("killed")

        def join(self):
            ended.append("joined")

    def start(_rank, arguments, processes, **_):
        def join(_timeout):
            if failure:
                raise failure

        if problem == "out of memory":
            arguments[-1].put(Measured(problem=problem))
        return SimpleNamespace(join=join, processes=[Process()] * processes)

    ended = []
    monkeypatch.setattr(tune_trial, "start_processes", start)
    assert run_trial(work(), 2, timeout=0.1).problem == problem
    assert ended == ["killed", "joined"] * 2


def test_out_of_memory_is_told_by_the_process_itself(monkeypatch):
    def measure(_work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    told, ended = SimpleNamespace(put=lambda result: ended.append(result.problem)), []
    monkeypatch.setattr(tune_trial, "_become_rank", lambda *_: None)
    monkeypatch.setattr(tune_trial, "_measure", measure)
    monkeypatch.setattr(tune_trial.os, "_exit", ended.append)
    tune_trial._rank(1, work(), 2, 0, told)
    assert ended == ["out of memory", 1]

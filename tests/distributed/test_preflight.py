"""Preflight: what it says of healthy runs, of planted faults, and that a run does not feel it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

slow = pytest.mark.slow
IDS = {
    "targets",
    "padding",
    "overlap",
    "gradients",
    "gradients_cleared",
    "loss_at_start",
    "causality",
    "memory",
    "speed",
    "updates",
    "overfit",
    "warm_up",
    "evaluation_repeats",
}
# (processes, scenarios of one start)
STARTS = [
    (1, ["moe", "dense", "bf16", "muon", "fp16", "accumulated", "one document"]),
    (1, ["shifted by two", "not shifted", "shifted in the loss", "padding", "future", "dropout", "embedding"]),
    (1, ["no gradient", "kept", "kept muon", "pure bf16", "learning rate too high", "learning rate too low"]),
    (1, ["overlap", "memory", "time", "no learning rate"]),
    (2, ["split fp16", "identity"]),
]


@pytest.fixture(scope="session")
def found(processes, workplace, tmp_path_factory):
    """`found(scenario)`: what worker_preflight.py found; a start does several."""
    from corpus.pipeline import prepare
    from corpus.settings import PreparationSettings

    folder, worker, started = (
        tmp_path_factory.mktemp("preflight"),
        Path(__file__).resolve().parents[1] / "workers" / "worker_preflight.py",
        {},
    )
    with (folder / "progress").open("w") as progress:
        prepare(
            [workplace / "stories.jsonl"], folder / "corpus", PreparationSettings(vocab_size=512), progress=progress
        )

    def result(scenario):
        place = next(place for place, (_, names) in enumerate(STARTS) if scenario in names)
        count, names = STARTS[place]
        if place not in started:
            started[place] = processes.ranks(count, [worker, folder, *names], PYTHONPATH=worker.parents[2])
        file = folder / f"{count}-{scenario}.json"
        assert file.is_file(), started[place].output
        content = json.loads(file.read_text(encoding="utf-8"))
        assert "broken" not in content, content["broken"]
        return content

    return result


def checks(result):
    return {check["id"]: check for check in result["record"]["checks"]}


# --- real engines -----------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    "scenario", ["moe", "dense", "bf16", "muon", "fp16", "accumulated", "one document", "split fp16"]
)
def test_nothing_fails_in_a_healthy_run(found, scenario):
    result = found(scenario)
    assert result["failed"] == []
    assert set(checks(result)) == IDS
    assert all((check["hint"] == "") == (check["level"] == "pass") for check in checks(result).values())


@slow
@pytest.mark.parametrize(
    ("scenario", "line", "words"),
    [
        ("shifted by two", "targets", "2 places on"),
        ("not shifted", "targets", "the input itself"),
        ("shifted in the loss", "targets", "cross-entropy of the next token"),
        ("padding", "padding", "count in the loss"),
        ("future", "causality", "later tokens"),
        ("dropout", "evaluation_repeats", "two evaluations of one batch give"),
        ("embedding", "loss_at_start", "confident, and wrong"),
        ("no gradient", "gradients", "norm.weight"),
        ("kept", "gradients_cleared", "grows to"),
        ("kept muon", "gradients_cleared", "grows to"),
        ("pure bf16", "updates", "bfloat16"),
        ("learning rate too high", "overfit", "too high"),
        ("learning rate too low", "overfit", "too low"),
        ("no learning rate", "warm_up", "0 in all"),
        ("overlap", "overlap", "100.0%"),
        ("memory", "memory", "gradient_accumulation_steps=2"),
    ],
)
def test_a_planted_fault_fails_on_its_line(found, scenario, line, words):
    check = checks(found(scenario))[line]
    assert check["level"] == "fail"
    assert not check["ok"]
    assert words in check["text"] + check["hint"]
    assert check["hint"]
    assert line in found(scenario)["failed"]


@slow
@pytest.mark.parametrize(
    "scenario",
    [
        "shifted by two",
        "future",
        "dropout",
        "embedding",
        "no gradient",
        "pure bf16",
        "learning rate too high",
        "learning rate too low",
        "no learning rate",
        "overlap",
        "memory",
    ],
)
def test_a_planted_fault_fails_on_no_other_line(found, scenario):
    assert len(found(scenario)["failed"]) == 1


@slow
def test_a_high_learning_rate_without_warm_up_is_told(found):
    assert checks(found("learning rate too high"))["warm_up"]["level"] == "warn"


@slow
def test_a_time_limit_that_is_too_short_is_told_with_what_would_fit(found):
    check = checks(found("time"))["speed"]
    assert check["level"] == "warn"
    assert re.search(r"--time_limit leaves [01] s", check["text"])
    assert "--max_steps" in check["hint"]


@slow
def test_every_check_has_its_line_and_the_time_is_told(found):
    result = found("moe")
    lines = result["printed"].splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == [check["id"] for check in result["record"]["checks"]]
    assert lines[0].startswith("preflight: ")
    assert lines[-1].endswith(f"in {result['record']['seconds']:.1f} s")


@slow
def test_the_trial_engine_leaves_no_files(found):
    assert found("moe")["files"] == ["preflight.json"]


@slow
def test_a_training_after_a_preflight_is_bit_for_bit_the_one_without(found):
    result = found("identity")
    assert result["before"] == result["after"]
    assert len(set(result["before"])) == 4
    assert result["same"]
    assert result["weights"] == 44
    assert result["randomness"]


@slow
def test_the_flag_and_what_a_failure_does_to_a_run(processes, flags, train_py, workplace):
    """Status 0 and no run for --preflight; 1 if something failed; 2 before a run, which does not start."""

    def train(output, *more):
        given = [flag for flag in flags(f"runs/{output}", *more) if flag != "--skip_preflight"]
        return processes.finish(processes.start([sys.executable, train_py, *given]))

    good = train("preflight-good", "--preflight")
    assert good.status == 0, good.output
    assert "0 failed, in " in good.output
    left = {path.name for path in (workplace / "runs" / "preflight-good").iterdir()}
    assert left - {"lock"} == {"logs", "preflight.json"}
    bad = ("--set", "optimizer.params.lr=2")
    assert train("preflight-bad", "--preflight", *bad).status == 1
    stopped = train("preflight-bad", *bad)
    assert stopped.status == 2
    assert "train.py: preflight failed in overfit" in stopped.output
    assert "--skip_preflight" in stopped.output
    assert not (workplace / "runs" / "preflight-bad" / "metrics.jsonl").exists()

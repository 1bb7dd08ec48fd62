"""Preflight: what it says of healthy runs, of planted faults, and that a run does not feel it."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from training.monitoring.weight_updates import Change
from training.preflight.cost_checks import Cost, Workload, check_speed, smaller_batch
from training.preflight.data_checks import Overlap, RowFigures, check_overlap, check_padding, check_row_targets
from training.preflight.model_checks import (
    LossFigures,
    check_causality,
    check_evaluation_repeats,
    check_loss,
    check_loss_at_start,
)
from training.preflight.report import Result
from training.preflight.step_checks import (
    GradientFigures,
    UpdateFigures,
    check_gradients,
    check_gradients_cleared,
    check_overfit,
    check_updates,
    check_warm_up,
)

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
    (1, ["moe", "dense", "bf16", "muon", "fp16", "accumulated", "one document", "identity"]),
    (1, ["shifted by two", "not shifted", "shifted in the loss", "padding", "future", "dropout", "embedding"]),
    (1, ["no gradient", "kept", "kept muon", "pure bf16", "learning rate too high", "learning rate too low"]),
    (1, ["overlap", "memory", "time", "no learning rate"]),
    (2, ["split", "split fp16", "identity split"]),
]
ROWS = RowFigures({0: 0.01, 1: 1.0, 2: 0.01, 3: 0.01}, 1.0, 0.0, 0.0, 0.0, 1.0)


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
            started[place] = processes.ranks(
                count, [worker, folder, *names], PYTHONPATH=worker.parents[2], BUFUDU_TEST_CPU_FP16=1, OMP_NUM_THREADS=1
            )
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
    "scenario", ["moe", "dense", "bf16", "muon", "fp16", "accumulated", "one document", "split", "split fp16"]
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
@pytest.mark.parametrize("scenario", ["identity", "identity split"])
def test_a_training_after_a_preflight_is_bit_for_bit_the_one_without(found, scenario):
    result = found(scenario)
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


# --- what is made of the figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "level"), [(8.76, "pass"), (8.9, "pass"), (8.2, "fail"), (12.0, "fail"), (math.nan, "fail")]
)
def test_the_loss_at_the_start(loss, level):
    assert check_loss_at_start(loss, 6400).level == level


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matches": {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}}, "the input itself"),
        ({"matches": {0: 0.0, 1: 0.1, 2: 0.0, 3: 1.0}}, "3 places on"),
        ({"matches": {0: 0.1, 1: 0.5, 2: 0.1, 3: 0.1}}, "only 50.0%"),
        ({"last_match": 0.5}, "the last target"),
        ({"from_corpus": 0.5}, "not those of the corpus"),
    ],
)
def test_wrong_targets(changes, words):
    check = check_row_targets(RowFigures(**(vars(ROWS) | changes)))
    assert check.level == "fail"
    assert words in check.text


def test_right_targets_and_full_rows():
    assert check_row_targets(ROWS) is None
    assert check_padding(ROWS).level == "pass"


def test_padding_that_does_not_count_only_wastes_time():
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_inputs": 0.35, "ignored_targets": 0.35}))).level == "warn"
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_targets": 0.35}))).level == "fail"


@pytest.mark.parametrize(("leak", "level"), [(0.0, "pass"), (1e-3, "fail"), (math.nan, "fail")])
def test_leaks(leak, level):
    assert check_causality(leak).level == level


@pytest.mark.parametrize(("share", "level"), [(0.0, "pass"), (0.04, "pass"), (0.2, "warn"), (0.9, "fail")])
def test_overlaps(share, level):
    assert check_overlap(Overlap(share, 1000, 1.0)).level == level


def test_without_validation_text_nothing_is_compared():
    assert check_overlap(None).level == "warn"


def test_a_reported_loss_that_is_another_token_s():
    figures = LossFigures(4.0, (4.0, 4.0), {0: 9.0, 1: 8.0, 2: 4.01, 3: 9.0})
    assert "the token 2 places on" in check_loss(figures, "fp32").text
    assert check_loss(LossFigures(4.0, (4.0, 4.0), {0: 9.0, 1: 4.001, 2: 8.0, 3: 9.0}), "fp32").level == "pass"


@pytest.mark.parametrize(
    ("train", "twice", "drops", "level"),
    [
        (4.0, (4.0, 4.0), False, "pass"),
        (4.0, (4.0, 4.01), False, "fail"),
        (4.0, (4.5, 4.5), False, "fail"),
        (4.0, (4.5, 4.5), True, "pass"),
        (4.0, (math.nan, math.nan), True, "fail"),
    ],
)
def test_evaluations(train, twice, drops, level):
    assert check_evaluation_repeats(LossFigures(train, twice, {1: train}), "fp32", drops_tokens=drops).level == level


ROUTER, EXPERTS = "model.layers.0.mlp.gate.weight", [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in (0, 1)]


@pytest.mark.parametrize(
    ("squares", "routes", "level", "words"),
    [
        ([1.0, 1.0, 1.0], [1000, 1000], "pass", "2 experts and 1 routers"),
        ([0.0, 1.0, 1.0], [1000, 1000], "fail", "gate.weight"),
        ([1.0, math.inf, 1.0], [1000, 1000], "fail", "not finite"),
        ([1.0, 1.0, 0.0], [2000, 0], "fail", "the router has collapsed"),
        ([1.0, 1.0, 0.0], [4, 0], "warn", "too few tokens"),
        ([1.0, 1.0, 0.0], [1990, 10], "fail", "experts.1.up_proj"),
    ],
)
def test_gradients(squares, routes, level, words):
    check = check_gradients(GradientFigures(dict(zip([ROUTER, *EXPERTS], squares, strict=True)), [routes]))
    assert check.level == level
    assert words in check.text + check.hint


@pytest.mark.parametrize(
    ("norms", "level"),
    [
        ([(1.0, 33.0), (1.0, 33.0)], "pass"),
        ([(1.0, 33.0), (2.0, 33.0)], "fail"),
        ([(1.0, 1.0), (1.0, 2.0)], "fail"),
        ([(math.nan, 5.0), (math.nan, 10.0)], "fail"),
        ([(math.nan, math.nan)] * 2, "warn"),
    ],
)
def test_gradients_that_are_kept(norms, level):
    assert check_gradients_cleared(norms).level == level


def test_updates_that_round_away():
    whole, none, some = Change(0, 100, 0.01), Change(100, 100, 0.0), Change(10, 100, 0.01)

    def checked(peak, reduced, dtype="bfloat16", still=()):
        return check_updates(UpdateFigures({"a": whole, "b": peak}, {"a": whole, "b": reduced}, dtype), set(still))

    assert checked(whole, whole, "float32").level == "pass"
    assert checked(none, whole).level == "fail"
    assert checked(none, whole, still={"b"}).level == "pass"
    assert checked(whole, none).level == "fail"
    assert checked(whole, some).level == "warn"
    assert "fp32 master copies" in checked(whole, none).hint


@pytest.mark.parametrize(
    ("losses", "ratio", "level", "words"),
    [
        ([7.4, 7.0, *[6.3] * 23], 0.015, "pass", ""),  # AdamW at 2e-4
        ([6.9, 5.0, 3.0], 0.12, "pass", ""),  # Muon
        ([7.6] * 24 + [7.56], 1.5e-4, "fail", "too low"),
        ([7.6] * 24 + [7.36], 1.2e-3, "fail", "too low"),  # Muon at a hundredth
        ([5.9] * 24 + [4.0], 1.5, "fail", "too high"),
        ([7.9, 11.9, 9.0] + [8.0] * 22, 0.3, "fail", "too high"),
        ([7.4, math.nan], 0.1, "fail", "too high"),
        ([6.9] * 24 + [5.0], 0.6, "warn", "watch"),
        ([7.5], 0.1, "warn", "slow"),
        ([7.6] * 25, 0.1, "fail", "large enough"),
    ],
)
def test_one_batch_learned_by_heart(losses, ratio, level, words):
    check = check_overfit(7.6, losses, ratio, 2000)
    assert check.level == level
    assert words in check.hint


@pytest.mark.parametrize(
    ("rates", "ratio", "level"),
    [
        ([[0.0], [0.0], [0.5], [0.8], [1.0], [0.5]], 1.0, "pass"),
        ([[1.0], [0.5]], 0.01, "pass"),
        ([[0.0], [1.0], [0.5]], 0.12, "warn"),
    ],
)
def test_warm_up(rates, ratio, level):
    assert check_warm_up(rates, 1000, ratio, rise=0.0).level == level


def test_hours_and_what_would_fit():
    cost, workload = Cost(0.9, 0.1, 0.5, 2**30, True), Workload(1000, 10_000, 1, 5.0, 40)
    assert check_speed(cost, workload, None).text.startswith("10,000 tokens/s, 17 min 00 s for 1,000 steps")
    assert check_speed(cost, workload, 1100).level == "pass"
    assert "--epochs 2.5" in check_speed(cost, workload, 510).hint
    assert "would fit" not in check_speed(cost, workload, 0.5).hint  # not even a step does


def test_a_smaller_batch_keeps_the_global_one():
    class Resolved:
        micro_batch, accumulation, train_batch = 12, 4, 96

    assert "per_gpu=6 gradient_accumulation_steps=8 train_batch_size=96" in smaller_batch(Resolved)
    Resolved.micro_batch = 1
    assert "--max_seq_len" in smaller_batch(Resolved)


def test_a_line_of_the_terminal():
    assert Result("warn", "5 of 9", "look").line("overlap") == "  warn  overlap             5 of 9; look"

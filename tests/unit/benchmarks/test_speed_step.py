"""The logic of the speed benchmarks: parts of a step, the table of aims."""

from __future__ import annotations

import json

import pytest

from benchmarks.speed import aims, experts, step
from benchmarks.speed.step_child import Clock


def test_a_parts_time_is_without_what_is_nested_in_it(monkeypatch):
    now = 0

    def work(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(Clock, "now", staticmethod(lambda: now))
    clock = Clock()
    inner = clock.timed("inner", lambda: work(5))
    outer = clock.timed("outer", lambda: [inner(), work(2), inner()])
    outer()
    assert clock.seconds == {"inner": 10, "outer": 2}


def test_the_first_steps_do_not_count():
    steps = [{"backward": 9.0, "loop": 9.0}] * 2 + [
        {"backward": 0.3, "loop": 0.1},
        {"backward": 0.5, "loop": 0.1},
        {"backward": 0.4},
    ]
    found = step.parts_of({"steps": steps, "peak_bytes": 5}, skipped=2)
    assert found["parts"]["backward"] == pytest.approx(400)
    assert found["parts"]["loop"] == pytest.approx(100)
    assert found["parts"]["data"] == 0
    assert found["milliseconds"] == pytest.approx(400)


def test_experts_are_compared_with_the_dense_model_of_their_precision():
    lines = [
        {
            "title": f"{precision} {top_k}",
            "precision": precision,
            "top_k": top_k,
            "processes": 1,
            "milliseconds": milliseconds,
        }
        for precision, top_k, milliseconds in (("bf16", 0, 100), ("bf16", 1, 120), ("fp32", 0, 200), ("fp32", 1, 300))
    ]
    assert step.experts_against_dense(lines) == {"bf16 1": 1.2, "fp32 1": 1.5}


def test_a_runs_outcome_is_its_last_evaluation():
    rows = [
        {"split": "train", "tokens_per_second": 10.0},
        {"split": "val", "tokens": 5, "step": 1, "loss": 3.0, "bits_per_byte": 2.0},
        {"split": "train", "tokens_per_second": 12.0},
        {"split": "val", "tokens": 9, "step": 2, "loss": 2.0, "bits_per_byte": 1.5},
    ]
    assert experts.outcome(rows) == {
        "tokens": 9,
        "steps": 2,
        "bits_per_byte": 1.5,
        "loss": 2.0,
        "tokens_per_second": 12.0,
    }


def test_the_table_of_aims_says_what_was_reached_missed_and_not_measured(tmp_path):
    race = {
        "ours": {
            "best": {"against_peer": {"seconds_ratio": 9.0, "tokens_per_second_ratio": 2.0}},
            "equal": {"against_peer": {"seconds_ratio": None, "tokens_per_second_ratio": 2.0}},
        }
    }
    (tmp_path / "race.json").write_text(json.dumps(race))
    (tmp_path / "t4.json").write_text(json.dumps({"epochs": {"mid": {"minutes": 35.0}}}))
    rows = aims.table(tmp_path)[2:]
    assert [row.split(" | ")[3].strip(" |") for row in rows] == [
        "reached",
        "missed",
        "missed",
        "not measured",
        "not measured",
        "not measured",
        "not measured",
        "not measured",
        "reached",
    ]
    assert "never" in rows[1]


def test_a_run_that_was_left_out_is_not_measured(tmp_path):
    side = {"against_peer": {"seconds_ratio": 3.0, "tokens_per_second_ratio": 2.0}}
    (tmp_path / "race.json").write_text(json.dumps({"ours": {"best": side}}))
    rows = aims.table(tmp_path)[2:]
    assert "3 x | missed" in rows[0]
    assert "not measured" in rows[1]

"""The parts one after the other: what one gets wrong does not keep the others from their results."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks.inputs import Skip
from benchmarks.speed import __main__
from common.errors import UserError


def _part(name: str, outcome: object) -> SimpleNamespace:
    def measure(work, flags, say):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(
        NAME=name, add_flags=lambda parser: None, measure=measure, table=lambda result: [f"table of {result['figure']}"]
    )


@pytest.mark.parametrize(
    ("first", "status", "said"),
    [
        ({"figure": 6}, 0, ""),
        (Skip("nothing to do it with"), 0, ""),
        (RuntimeError("it ended early"), 1, "a: failed: it ended early"),
        (UserError("--peer x is no trainer: give one"), 2, "a: --peer x is no trainer: give one"),
    ],
)
def test_every_part_runs_and_the_worst_status_is_the_whole_ones(tmp_path, monkeypatch, capsys, first, status, said):
    parts = {"a": _part("a", first), "b": _part("b", {"figure": 7})}
    monkeypatch.setattr(__main__, "PARTS", parts)
    assert __main__.main(["--work", str(tmp_path)]) == status
    printed = capsys.readouterr()
    assert "table of 7" in printed.out and said in printed.err
    assert json.loads((tmp_path / "b.json").read_text()) == {"figure": 7}
    assert (tmp_path / "a.json").exists() == isinstance(first, dict)


def test_a_part_asked_for_by_its_name_must_not_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "PARTS", {"a": _part("a", Skip("no peer")), "b": _part("b", {"figure": 7})})
    assert __main__.main(["--work", str(tmp_path), "--only", "a"]) == 2
    assert __main__.main(["--work", str(tmp_path), "--only", "b"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step_rounds", "0"], "--step_rounds: 0 is too small"),
        (["--step_precisions", "fp8"], "--step_precisions: invalid choice: 'fp8'"),
        (["--step_data", "nowhere"], "--step_data: nowhere is no prepared corpus: write one with prepare.py"),
        (["--scaling_config", "nowhere.json"], "--scaling_config: there is no file nowhere.json"),
        (["--work", __file__], "no folder can be made there"),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main([*words, "--only", "step"])
    assert end.value.code == 2 and said in capsys.readouterr().err

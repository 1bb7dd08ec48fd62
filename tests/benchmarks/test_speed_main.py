"""The parts one after the other: what one gets wrong does not keep the others from their results."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks.speed import Skip, __main__
from corpus.errors import UserError


def _part(name: str, outcome: object) -> SimpleNamespace:
    def measure(work, flags, say):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(NAME=name, add_flags=lambda parser: None, measure=measure,
                           table=lambda result: [f"table of {result['figure']}"])


@pytest.mark.parametrize(("first", "status", "said"), [
    ({"figure": 6}, 0, ""),
    (Skip("nothing to do it with"), 0, ""),
    (RuntimeError("it ended early"), 1, "a: failed: it ended early"),
    (UserError("--peer x is no trainer: give one"), 2, "a: --peer x is no trainer: give one"),
])
def test_every_part_runs_and_the_worst_status_is_the_whole_ones(tmp_path, monkeypatch, capsys, first, status, said):
    parts = {"a": _part("a", first), "b": _part("b", {"figure": 7})}
    monkeypatch.setattr(__main__, "PARTS", parts)
    assert __main__.main(["--work", str(tmp_path)]) == status
    printed = capsys.readouterr()
    assert "table of 7" in printed.out and said in printed.err
    assert json.loads((tmp_path / "b.json").read_text()) == {"figure": 7}
    assert (tmp_path / "a.json").exists() == isinstance(first, dict)

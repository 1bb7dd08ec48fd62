"""A run's folder, whole, half written, or hardly there."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from evaluation.run_record import find_corpus, is_run, read_run


def write_run(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def row(step, split, **values):
    return json.dumps({"step": step, "split": split} | values)


def test_curves_hold_finite_values_in_the_order_of_steps(tmp_path):
    run = read_run(
        write_run(
            tmp_path / "a",
            row(2, "train", loss=3.0),
            row(1, "train", loss=4.0, tokens=10),
            row(3, "train", loss=None),
            row(4, "val", loss=float("inf")),
        )
    )
    assert run.curve("train", "loss") == [(1, 4.0), (2, 3.0)]
    assert run.curve("val", "loss") == []
    assert (run.steps, run.tokens) == (4, 10)


def test_half_a_line_and_missing_files_are_passed_over(tmp_path):
    run = read_run(write_run(tmp_path / "a", row(1, "val", loss=4.0), '{"step": 2, "split": "val", "lo'))
    assert run.steps == 1
    assert (run.summary, run.preflight, run.samples, run.total_steps) == ({}, None, [], None)


def test_best_is_the_evaluation_whose_weights_were_kept(tmp_path):
    folder = write_run(tmp_path / "a", row(0, "val", loss=1.0), row(5, "val", loss=3.0), row(9, "val", loss=2.0))
    assert read_run(folder).best == (9, 2.0)
    state = folder / "checkpoints" / "step-00000005" / "run_state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"best_step": 5, "best_loss": 3.0}', encoding="utf-8")
    assert read_run(folder).best == (9, 2.0)  # the checkpoint is older than the last evaluation
    (folder / "summary.json").write_text('{"best_step": 9, "best_val_loss": 1.99}', encoding="utf-8")
    assert read_run(folder).best == (9, 1.99)


def test_the_corpus_is_found_from_the_run_too(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "runs" / "a", row(1, "val", loss=4.0))
    (folder / "run.json").write_text('{"corpus": "data/mine"}', encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert find_corpus(read_run(folder)) is None
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "manifest.json").write_text("{}", encoding="utf-8")
    found = find_corpus(read_run(folder))
    assert found is not None and found.resolve() == (tmp_path / "data" / "mine").resolve()


def test_a_folder_with_nothing_readable_is_refused(tmp_path):
    folder = write_run(tmp_path / "a", "no json")
    assert is_run(folder)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_run(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "step",
    "split",
    "loss",
    "tokens",
    "expert_load",
    "best_step",
    "best_val_loss",
    "total_steps",
    "flags",
    "model",
    "corpus",
    "checks",
    "scheduler",
    "params",
    "text",
    "alarm",
)


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6))
def test_no_content_of_the_files_breaks_the_reading(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    text = json.dumps(content)
    for name in (
        "metrics.jsonl",
        "samples.jsonl",
        "alarms.jsonl",
        "summary.json",
        "run.json",
        "preflight.json",
        "ds_config.json",
    ):
        (folder / name).write_text(text + "\n", encoding="utf-8")
    try:
        run = read_run(folder)
    except UserError:
        return
    assert run.best is None or run.best[0] >= 0 or isinstance(run.best[0], int)
    assert run.steps is not None and run.seq_len > 0
    assert run.total_steps is None or isinstance(run.total_steps, int)

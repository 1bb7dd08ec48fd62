"""Finding, judging and clearing away checkpoints, on folders that only look like some."""

import json

import pytest

from corpus.errors import UserError
from training import checkpoint
from training.checkpoint import RunState, check_identity, find, read_state


def make(folder, step, *, complete=True):
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    if complete:
        (path / "run_state.json").write_text(json.dumps({"step": step}))
    return path


@pytest.fixture
def output(tmp_path):
    """A run with two checkpoints, one that was cut off, and other things beside them."""
    folder = tmp_path / "run" / "checkpoints"
    make(folder, 6)
    make(folder, 12)
    make(folder, 18, complete=False)
    (folder / "step-00000024.partial").mkdir()
    (folder / "step-00000024.partial" / "run_state.json").write_text('{"step": 24}')
    (folder / "step-7").mkdir()
    (folder / "step-7" / "run_state.json").write_text('{"step": 7}')
    (folder / "latest").write_text("step-00000018\n")
    return tmp_path / "run"


def test_auto_takes_the_newest_whole_one(output):
    assert find(output, "auto") == output / "checkpoints" / "step-00000012"


def test_auto_starts_anew_where_there_is_none(tmp_path):
    assert find(tmp_path, "auto") is None
    make(tmp_path / "checkpoints", 3, complete=False)
    assert find(tmp_path, "auto") is None


def test_never_starts_anew_but_overwrites_nothing(output, tmp_path):
    assert find(tmp_path / "other", "never") is None
    with pytest.raises(UserError, match="already holds a run") as caught:
        find(output, "never")
    assert "--output" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "found"),
    [("run/checkpoints/step-00000006", 6), ("run/checkpoints", 12), ("run", 12)],
)
def test_a_path_is_a_checkpoint_or_a_folder_of_them(output, tmp_path, given, found):
    assert find(tmp_path / "another", str(tmp_path / given)) == output / "checkpoints" / f"step-{found:08d}"


@pytest.mark.parametrize("given", ["nowhere", "run/checkpoints/step-00000018", "run/checkpoints/latest"])
def test_a_path_without_a_checkpoint(output, tmp_path, given):
    with pytest.raises(UserError, match="no checkpoint there"):
        find(output, str(tmp_path / given))


def test_the_state_is_read_as_it_was_written(tmp_path):
    path = make(tmp_path, 5)
    (path / "run_state.json").write_text('{"step": 5, "best_loss": 2.5, "identity": {"seed": 1}}')
    assert read_state(path) == RunState(step=5, best_loss=2.5, identity={"seed": 1})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1, "more": 2}', "3"])
def test_a_damaged_state_names_the_folder_to_delete(tmp_path, text):
    path = make(tmp_path, 5)
    (path / "run_state.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_state(path)
    assert str(path) in str(caught.value)


def test_another_identity_is_refused_with_all_that_differs(tmp_path):
    state = RunState(identity={"seed": 1, "corpus": "a", "model.hidden_size": 64, "gone": 1})
    check_identity(state, dict(state.identity), tmp_path)
    with pytest.raises(UserError) as caught:
        check_identity(state, {"seed": 2, "corpus": "a", "model.hidden_size": 128, "new": 5}, tmp_path)
    for part in ("seed: 1 then, 2 now", "model.hidden_size: 64 then, 128 now", "gone: 1 then, None now",
                 "new: None then, 5 now"):
        assert part in str(caught.value)
    assert "corpus" not in str(caught.value)


@pytest.mark.parametrize(("keep", "left"), [(1, [12]), (2, [6, 12]), (5, [6, 12])])
def test_the_newest_are_kept_and_nothing_else_is_touched(output, keep, left):
    folder = output / "checkpoints"
    checkpoint._prune(folder, keep)
    expected = {f"step-{step:08d}" for step in (*left, 18)} | {"step-00000024.partial", "step-7", "latest"}
    assert {path.name for path in folder.iterdir()} == expected

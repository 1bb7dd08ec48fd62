"""Finding, judging and clearing away checkpoints, on folders that hold none of DeepSpeed's numbers."""

import json
import os

import pytest
import torch
from safetensors.torch import save

from common import files
from common.errors import UserError
from common.files import sha256_file
from training.checkpointing import checkpoint, engine_state
from training.checkpointing.checkpoint import choose, damage, read_state
from training.checkpointing.earlier_runs import checkpoints_in, find
from training.checkpointing.run_state import RunState

ENGINE = {
    "split": {"processes": 2, "ep_size": 1, "zero_stage": 2},
    "global_steps": 6,
    "global_samples": 48,
    "skipped_steps": 0,
    "optimizer_steps": 6,
    "scheduler": None,
    "loss_scaler": {},
}


def make(folder, step, **state):
    """A whole checkpoint."""
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    files = {}
    for rank in range(2):
        share = path / f"rank-{rank:05d}.safetensors"
        share.write_bytes(save({"master|embed|0": torch.arange(100.0) + rank}))
        files[share.name] = {"bytes": share.stat().st_size, "sha256": sha256_file(share)}
    write_state(path, {"format": 2, **RunState(step=step, **state).model_dump(), "engine": ENGINE, "files": files})
    return path


def write_state(path, content):
    content.pop("sha256", None)
    text = json.dumps(content | {"sha256": checkpoint._digest(content)}, indent=2)
    (path / "run_state.json").write_text(text)


@pytest.fixture
def output(tmp_path):
    """A run with two checkpoints, one that was cut off, and other things beside them."""
    folder = tmp_path / "run" / "checkpoints"
    make(folder, 6)
    make(folder, 12)
    make(folder / "elsewhere", 24).rename(folder / "step-00000024.partial")
    (folder / "step-7").mkdir()
    (folder / "latest").write_text("step-00000018\n")
    return tmp_path / "run"


def step(path):
    return None if path is None else read_state(path).step


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_auto_takes_the_newest_without_a_word(output):
    found, warnings = choose(output, "auto")
    assert (step(found), warnings) == (12, [])


def test_auto_starts_anew_where_there_is_none(tmp_path):
    assert choose(tmp_path, "auto") == (None, [])
    (tmp_path / "checkpoints" / "step-00000003.partial").mkdir(parents=True)
    assert choose(tmp_path, "auto") == (None, [])


def test_never_starts_anew_but_overwrites_nothing(output, tmp_path):
    assert choose(tmp_path / "other", "never") == (None, [])
    with pytest.raises(UserError, match="already holds a run") as caught:
        find(output, "never")
    assert "--output" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "found"), [("run/checkpoints/step-00000006", 6), ("run/checkpoints", 12), ("run", 12)]
)
def test_a_path_is_a_checkpoint_or_a_folder_of_them(output, tmp_path, given, found):
    assert step(choose(tmp_path / "another", str(tmp_path / given))[0]) == found


def test_a_path_does_not_undo_what_came_after(output):
    with pytest.raises(UserError, match="has gone on to step-00000012 already"):
        find(output, str(output / "checkpoints" / "step-00000006"))
    assert step(choose(output, str(output / "checkpoints"))[0]) == 12


def test_what_cannot_be_read_is_damage(output, monkeypatch):
    opened = files.open_regular

    def broken(path):
        if path.name == "rank-00000.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return opened(path)

    monkeypatch.setattr(files, "open_regular", broken)
    assert "rank-00000.safetensors: cannot be read (Input/output error)" in damage(output / "checkpoints/step-00000012")


@pytest.mark.parametrize(
    ("keep", "known", "left"), [(1, 12, [12]), (2, 12, [6, 12]), (1, 6, [6, 12]), (1, None, [6, 12])]
)
def test_room_is_made_before_a_checkpoint_is_written(output, keep, known, left):
    folder = output / "checkpoints"
    whole = None if known is None else folder / f"step-{known:08d}"
    checkpoint._empty(folder / "step-00000018.partial", keep, whole)
    assert {path.name for path in checkpoints_in(folder)} == {f"step-{step:08d}" for step in left}
    assert list((folder / "step-00000018.partial").iterdir()) == []


@pytest.mark.parametrize("given", ["nowhere", "run/checkpoints/step-7", "run/checkpoints/latest"])
def test_a_path_without_a_checkpoint(output, tmp_path, given):
    with pytest.raises(UserError, match="no checkpoint there"):
        find(output, str(tmp_path / given))


# --- damage -----------------------------------------------------------------------------------------------------------


def truncate(path):
    share = path / "rank-00001.safetensors"
    share.write_bytes(share.read_bytes()[:-1])


def flip_a_bit(path):
    share = path / "rank-00000.safetensors"
    data = bytearray(share.read_bytes())
    data[-5] ^= 4
    share.write_bytes(data)


def lose_a_file(path):
    (path / "rank-00001.safetensors").unlink()


def flip_a_digit(path):
    state = path / "run_state.json"
    state.write_text(state.read_text().replace('"step": 12', '"step": 13'))


def lose_the_state(path):
    (path / "run_state.json").unlink()


def empty_the_folder(path):
    for file in path.iterdir():
        file.unlink()


def cut_the_state(path):
    state = path / "run_state.json"
    state.write_text(state.read_text()[:200])


def fill_with_zeros(path):
    state = path / "run_state.json"
    state.write_bytes(b"\0" * len(state.read_bytes()))


DAMAGE = [
    (truncate, "rank-00001.safetensors has"),
    (flip_a_bit, "rank-00000.safetensors has changed"),
    (lose_a_file, "rank-00001.safetensors is missing"),
    (flip_a_digit, "run_state.json has changed"),
    (lose_the_state, "run_state.json cannot be read"),
    (empty_the_folder, "run_state.json cannot be read"),
    (cut_the_state, "run_state.json cannot be read"),
    (fill_with_zeros, "run_state.json cannot be read"),
]


@pytest.mark.parametrize(("harm", "words"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_one_is_named_and_the_one_before_is_taken(output, harm, words):
    newest = output / "checkpoints" / "step-00000012"
    assert damage(newest) is None
    harm(newest)
    found, [warning] = choose(output, "auto")
    assert step(found) == 6
    assert warning.startswith(f"{newest} is damaged and left alone: ")
    assert words in warning


def test_where_all_are_damaged_nothing_is_begun_anew_in_silence(output):
    for path in output.glob("checkpoints/step-000000??"):
        truncate(path)
    with pytest.raises(UserError, match=r"no whole checkpoint before it: delete .*checkpoints to start anew"):
        choose(output, "auto")


def test_a_damaged_one_that_was_asked_for_by_name_is_refused(output, tmp_path):
    path = output / "checkpoints" / "step-00000012"
    flip_a_bit(path)
    with pytest.raises(UserError, match="step-00000012 is damaged"):
        choose(tmp_path / "other", str(path))


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "rank-0.safetensors", "rank-00000.pt", ""])
def test_a_state_cannot_lead_out_of_its_folder(output, name):
    path = output / "checkpoints" / "step-00000012"
    content = json.loads((path / "run_state.json").read_text())
    write_state(path, content | {"files": content["files"] | {name: {"bytes": 1, "sha256": ""}}})
    assert "belongs to no checkpoint" in damage(path)


def test_one_of_another_version_says_so(output):
    path = output / "checkpoints" / "step-00000012"
    (path / "run_state.json").write_text('{"step": 12, "identity": {}}')  # as DeepSpeed's files had it beside them
    assert "another version of train.py (format 1, here 2)" in damage(path)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"format": 2}', '{"format": 2, "sha256": 3, "files": 4}', "[" * 9999]
)
def test_what_is_no_state_is_damage(output, text):
    path = output / "checkpoints" / "step-00000012"
    (path / "run_state.json").write_text(text)
    assert "run_state.json" in damage(path)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_state_is_read_as_it_was_written(tmp_path):
    state = {
        "best_loss": 2.123456789012345,
        "best_step": 3,
        "alarms": ["flat_loss"],
        "done": {"evaluation": 5},
        "skipped_batches": [1, 2],
        "identity": {"seed": 1},
        "ds_config": {"a": {"b": [1, None]}},
    }
    assert read_state(make(tmp_path, 5, **state)) == RunState(step=5, **state)


OLD_STATE = """{
  "format": 2, "step": 4, "total_steps": 12, "best_loss": 5.25, "best_step": 3, "stale_evaluations": 2,
  "seconds": 1.5, "wall_seconds": 9.0, "save_seconds": 0.1, "pace": 0.4, "alarms": ["flat_loss"],
  "done": {"evaluation": 3, "sample": 0}, "left_out": [1, 2], "rollbacks": 1, "finished": false,
  "identity": {"model.hidden_size": 64, "seed": 42}, "ds_config": {"train_batch_size": 8},
  "engine": {
    "split": {"processes": 2, "ep_size": 1, "zero_stage": 2}, "global_steps": 4, "global_samples": 32,
    "skipped_steps": 0, "optimizer_steps": 4, "scheduler": {"last_batch_iteration": 4},
    "loss_scaler": {"cur_scale": 65536.0, "cur_iter": 4, "last_overflow_iter": -1, "cur_hysteresis": 2}
  },
  "files": {"rank-00000.safetensors": {
    "bytes": 5, "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
  }},
  "sha256": "5f57c0471615eaf16fd05db665fb27d0da72ace68e6822bf11432dfcf5475cf7"
}"""


def test_a_state_with_the_keys_of_earlier_versions_is_read(tmp_path):
    """Word for word what version 513393a wrote."""
    path = tmp_path / "step-00000004"
    path.mkdir()
    (path / "rank-00000.safetensors").write_bytes(b"hello")
    (path / "run_state.json").write_text(OLD_STATE)
    assert damage(path) is None
    state = read_state(path)
    assert (state.step, state.evals_since_best, state.skipped_batches, state.rollbacks) == (4, 2, [1, 2], 1)
    assert (state.best_loss, state.pace, state.alarms, state.done["evaluation"]) == (5.25, 0.4, ["flat_loss"], 3)
    assert state.identity == {"model.hidden_size": 64, "seed": 42}


@pytest.mark.parametrize(("keep", "left"), [(1, [12]), (2, [6, 12]), (5, [6, 12])])
def test_the_newest_are_kept_and_what_was_cut_off_goes(output, keep, left):
    folder = output / "checkpoints"
    (folder / "step-00000006.discarded").mkdir()
    checkpoint._prune(folder, "step-00000012", keep)
    expected = {f"step-{step:08d}" for step in left} | {"elsewhere", "step-7", "latest"}
    assert {path.name for path in folder.iterdir()} == expected


def test_what_comes_after_a_step_that_the_run_went_back_before_goes(output):
    folder = output / "checkpoints"
    make(folder, 8)
    checkpoint._prune(folder, "step-00000008", 5)
    assert step(choose(output, "auto")[0]) == 8
    assert not (folder / "step-00000012").exists()
    assert (folder / "step-00000006").exists()


# --- what fuzzing has found (python -m stress.fuzz --target checkpoint) -------------------------------------------


JUNK = [None, True, -1, 1.5, 10**400, float("inf"), float("nan"), "many", "\ud800", [], {}, [1], {"a": 1}]
SHARE = ("files", "rank-00000.safetensors")
PLACES = [
    ("step",),
    ("total_steps",),
    ("best_loss",),
    ("seconds",),
    ("alarms",),
    ("done",),
    ("skipped_batches",),
    ("files",),
    ("finished",),
    ("identity",),
    ("engine",),
    ("engine", "global_steps"),
    SHARE,
    (*SHARE, "bytes"),
    (*SHARE, "sha256"),
    ("format",),
]


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_junk_in_the_state_is_damage_or_harmless(output, place):
    path = output / "checkpoints" / "step-00000012"
    original = json.loads((path / "run_state.json").read_text())
    for junk in [*JUNK, KeyError]:
        content = target = json.loads(json.dumps(original))
        for key in place[:-1]:
            target = target[key]
        if junk is KeyError:
            del target[place[-1]]
        else:
            target[place[-1]] = junk
        write_state(path, content)
        wrong = damage(path)
        if wrong is None:
            state = read_state(path)
            state.update_best(1.0)
            state.early_stopping(3)
            state.batch_number(5)
        else:
            assert len(wrong) < 500 and wrong.isprintable()
            assert choose(output, "auto")[0].name == "step-00000006"


def test_a_state_that_is_no_plain_file_is_damage(output):
    path = output / "checkpoints" / "step-00000012" / "run_state.json"
    path.unlink()
    os.mkfifo(path)
    assert "cannot be read (a pipe" in damage(path.parent)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "cannot be read (a pipe or a device" in damage(path.parent)
    path.unlink()
    path.touch()
    os.truncate(path, 2**40)
    assert "larger than 16 MB" in damage(path.parent)


@pytest.mark.parametrize(
    "tensors",
    [
        {"master|w": torch.zeros(3)},
        {"w": torch.zeros(3)},
        {"master|w|x": torch.zeros(3)},
        {"master|w|0": torch.zeros(3, 3)},
        {"master|w|0": torch.tensor(1.0)},
    ],
)
def test_a_share_of_other_tensors_is_a_sentence(tmp_path, tensors):
    (tmp_path / "rank-00000.safetensors").write_bytes(save(tensors))
    with (
        engine_state._open(tmp_path / "rank-00000.safetensors") as file,
        pytest.raises(UserError, match=r"not one of train\.py's"),
    ):
        engine_state._contents(file)

"""A sweep: which runs, in which folders, each done once, whatever happens to one of them or to the sweep itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import experiments.sweep as sweeping
import sweep as script
from common.errors import UserError
from experiments.sweep import Sweep, SweepSettings, is_behind
from experiments.sweep_plan import complete_config, parse_values, plan_runs
from training.config.command_line import file_flags, options

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent


@pytest.fixture
def fake(monkeypatch):
    """Runs of no time instead of train.py's."""
    monkeypatch.setattr(sweeping, "TRAIN", HERE / "fake_train.py")
    monkeypatch.setattr(sweeping, "POLL", 0.02)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{ROOT}")


def sweep_of(folder: Path, values: str, seeds=(1,), **settings) -> tuple[Sweep, list[str]]:
    said: list[str] = []
    made = SweepSettings(folder, ("--data", "x"), 1, **settings)
    return Sweep(made, plan_runs([f"optimizer.params.lr={values}"], list(seeds)), said.append), said


def started(folder: Path) -> list[str]:
    return (folder / "started").read_text().split()


def states(folder: Path) -> dict[str, str]:
    record = json.loads((folder / "sweep.json").read_text())
    return {name: run["state"] for name, run in record["runs"].items()}


# --- which runs -------------------------------------------------------------------------------------------------------


def test_folders_are_named_by_what_is_swept():
    runs = plan_runs(["optimizer.params.lr=1e-3,2e-3", "zero_optimization.stage=1,2"], [1, 2])
    assert len(runs) == 8
    assert [run.name for run in runs[:2]] == ["lr=1e-3_stage=1_seed=1", "lr=1e-3_stage=2_seed=1"]
    assert runs[0].overrides == ("optimizer.params.lr=1e-3", "zero_optimization.stage=1")
    assert [run.seed for run in runs] == [1] * 4 + [2] * 4  # every configuration once before any a second time
    assert len({run.name for run in runs}) == 8


def test_names_that_no_folder_can_have_are_still_different():
    runs = plan_runs(['a.b=[1, 2],[1;2],"x/y"'], [1])
    assert len({run.name for run in runs}) == 3
    assert all("/" not in run.name and " " not in run.name for run in runs)


@given(st.lists(st.sampled_from(["1", "1e-3", "[1,2]", '{"a":1,"b":[2,3]}', '"x,y"', "true"]), min_size=1, unique=True))
def test_values_are_split_at_their_own_commas_alone(values):
    assert parse_values(f"a.b={','.join(values)}") == ("a.b", values)


@pytest.mark.parametrize("option", ["a.b", "=1,2", "a=", "a=1,,2", "a=1,1"])
def test_wrong_values_are_named(option):
    with pytest.raises(UserError, match=r"--set "):
        plan_runs([option], [1])


def test_a_draw_is_a_part_of_the_product_and_always_the_same():
    option = ["a.b=1,2,3,4", "c.d=1,2,3,4"]
    drawn = plan_runs(option, [1], draw=5)
    assert len(drawn) == 5 and drawn == plan_runs(option, [1], draw=5)
    assert {run.overrides for run in drawn} < {run.overrides for run in plan_runs(option, [1])}
    assert len(plan_runs(option, [1], draw=99)) == 16


# --- doing them -------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_or_diverges_counts_and_the_sweep_goes_on(fake, tmp_path):
    sweep, said = sweep_of(tmp_path, "bad,nan,0.002")
    assert sweep.finish() is None
    assert states(tmp_path) == {"lr=bad_seed=1": "failed", "lr=nan_seed=1": "diverged", "lr=0.002_seed=1": "finished"}
    assert any("status 2): train.py: no such thing" in line for line in said)
    again, _ = sweep_of(tmp_path, "bad,nan,0.002")
    again.finish()
    assert len(started(tmp_path)) == 3  # nothing is repeated
    again.forget("failed")
    again.finish()
    assert started(tmp_path)[3:] == ["lr=bad_seed=1"]


def test_a_sweep_can_be_extended_but_not_be_made_another(fake, tmp_path):
    sweep_of(tmp_path, "0.001,0.002")[0].finish()
    sweep_of(tmp_path, "0.001,0.002,0.003", seeds=(1, 2))[0].finish()
    assert len(started(tmp_path)) == len(set(started(tmp_path))) == 6
    with pytest.raises(UserError, match="was begun with other flags"):
        Sweep(SweepSettings(tmp_path, ("--data", "y"), 1), plan_runs([], [1]), print)


def test_a_run_far_behind_is_asked_to_stop_by_the_rule(fake, tmp_path):
    sweep, _ = sweep_of(tmp_path, "0.001,slow,0.002", stop_losers=0.1)
    assert sweep.finish() is None
    assert states(tmp_path)["lr=slow_seed=1"] == "behind"
    assert states(tmp_path)["lr=0.002_seed=1"] == "finished"


def test_the_budget_ends_a_sweep_that_more_time_continues(fake, tmp_path):
    sweep, _ = sweep_of(tmp_path, "0.001")
    sweep.finish()
    used = json.loads((tmp_path / "sweep.json").read_text())["runs"]["lr=0.001_seed=1"]["seconds"]
    sweep, _ = sweep_of(tmp_path, "0.001,slow,0.002", budget=used + 1.0)
    assert "--budget is used up" in str(sweep.finish())
    assert states(tmp_path)["lr=slow_seed=1"] == "interrupted"
    assert "lr=0.002_seed=1" not in states(tmp_path)
    sweep, _ = sweep_of(tmp_path, "0.001,slow,0.002", budget=used + 500.0)
    assert sweep.finish() is None
    assert set(states(tmp_path).values()) == {"finished"}
    assert started(tmp_path).count("lr=0.001_seed=1") == 1


SCRIPT = """
import sys
from pathlib import Path
import experiments.sweep as sweeping
from experiments.sweep_plan import plan_runs
sweeping.TRAIN, sweeping.POLL = Path(sys.argv[2]), 0.02
settings = sweeping.SweepSettings(Path(sys.argv[1]), ("--data", "x"), 1)
sweeping.Sweep(settings, plan_runs(["optimizer.params.lr=0.001,slow,0.002"], [1]), print).finish()
"""


def test_a_killed_sweep_waits_for_the_run_that_outlived_it_and_repeats_nothing(fake, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path, HERE / "fake_train.py"])
    deadline = time.monotonic() + 100
    while not (tmp_path / "lr=slow_seed=1" / "summary.json").parent.is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    while states(tmp_path).get("lr=slow_seed=1") != "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    orphan = json.loads((tmp_path / "sweep.json").read_text())["runs"]["lr=slow_seed=1"]["pid"]
    sweep, said = sweep_of(tmp_path, "0.001,slow,0.002")
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:  # the orphan ends while the sweep waits for it
        if any("waiting for it" in line for line in said):
            os.kill(orphan, signal.SIGINT)
        real_sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping.time, "sleep", sleep)
        assert sweep.finish() is None
    assert set(states(tmp_path).values()) == {"finished"}
    assert started(tmp_path) == ["lr=0.001_seed=1", "lr=slow_seed=1", "lr=slow_seed=1", "lr=0.002_seed=1"]


# --- giving up and winning --------------------------------------------------------------------------------------------

BEST = [(0.0, 8.0), (50.0, 4.0), (100.0, 3.0)]


@pytest.mark.parametrize(
    ("curve", "given_up"),
    [
        ([(0, 8.0), (25, 6.7), (50, 4.6)], True),
        ([(0, 8.0), (25, 6.7), (50, 4.3)], False),  # near enough at the second
        ([(0, 8.0), (10, 9.5), (15, 9.5)], False),  # too early
        ([(50, 9.0)], False),
        ([(110, 9.0), (120, 9.0)], False),  # no run has come so far
    ],
)
def test_the_rule_of_losers(curve, given_up):
    assert is_behind(curve, [BEST], 0.1) is given_up
    assert is_behind(curve, [], 0.1) is False


def test_the_winner_is_a_complete_file_for_train_py():
    arguments = [
        "--data",
        "corpus",
        "--max_steps",
        "500",
        "--hidden_size",
        "128",
        "--use_moe",
        "false",
        "--set",
        "gradient_clipping=0.5",
    ]
    config = complete_config(
        ROOT / "ds_configs" / "t4x2.json", arguments, ["optimizer.params.lr=4e-3", "bufudu.patience=3"]
    )
    assert config["optimizer"]["params"]["lr"] == 4e-3 and config["gradient_clipping"] == 0.5
    made = options({}, file_flags(json.loads(json.dumps(config)), "winner.json"))
    assert (made.max_steps, made.patience, made.model) == (500, 3, {"hidden_size": 128, "use_moe": False})


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_ends_with_table_page_and_winner(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").touch()
    words = ["--set", "optimizer.params.lr=0.001,0.004", "--seeds", "1,2,3", "--num_gpus", "1", "--output", "s"]
    train = [
        "--",
        "--data",
        "x.jsonl",
        "--deepspeed_config",
        str(ROOT / "ds_configs" / "t4x1.json"),
        "--max_steps",
        "9",
    ]
    train += ["--set", "fp16.enabled=false"]
    assert script.main([*words, *train]) == 0
    printed = capsys.readouterr().out
    assert "6 finished" in printed and "has the lowest loss" in printed
    assert (tmp_path / "s" / "comparison.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "s" / "winner.json").read_text())["optimizer"]["params"]["lr"] == 0.001


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "optimizer.params.lr=1,2", "--", "--output", "x"], "--output after -- is not for a sweep"),
        (["--set", "optimizer.params.lr=1e-3,oops", "--", "--max_steps", "9"], "optimizer.params.lr"),
        (["--set", "bufudu.max_steps=1,2", "--", "--max_steps", "9"], "contradict each other"),
        (["--seeds", "1,1"], "holds a number twice"),
    ],
)
def test_wrong_input_is_named_before_anything_starts(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(["--num_gpus", "1", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

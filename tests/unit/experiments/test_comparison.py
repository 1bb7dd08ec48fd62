"""Comparing runs: what is one experiment, what may be compared in which unit, and what can be known."""

import json
import shutil
from pathlib import Path

import pytest
from run_folders import BATCH_TOKENS, STEPS, TEXT, write_run

import compare as script
from common.errors import UserError
from experiments.comparison import compare, reached
from experiments.run_figures import read_runs


def by_label(found: dict) -> dict:
    return {row["label"]: row for row in found["experiments"]}


def test_runs_that_differ_in_the_seed_alone_are_one_experiment(tmp_path):
    for lr, first in ((1e-3, 2), (2e-3, 1)):  # one of them has lost its first seed
        for seed in range(first, first + 3):
            write_run(tmp_path / f"lr{lr}_{seed}", lr=lr, seed=seed, floor=3.0 + 100 * lr, noise=0.005)
    found = compare(sorted(tmp_path.iterdir()))
    assert [(row["label"], row["seeds"]) for row in found["experiments"]] == [
        ("lr=0.001", [2, 3, 4]),
        ("lr=0.002", [1, 2, 3]),
    ]
    assert found["differences"] == {"optimizer.params.lr": ["0.001", "0.002"]}
    (pair,) = found["pairs"]
    assert pair["better"] == "lr=0.001" and pair["difference"] == pytest.approx(0.1, abs=0.02)
    assert pair["differs"] is True and pair["p"] < 0.01
    assert "more than the noise of seeds" in found["verdict"][-1]


def test_a_copy_of_a_run_is_no_second_seed(tmp_path):
    first = write_run(tmp_path / "a", lr=1e-3)
    shutil.copytree(first, tmp_path / "copy")
    write_run(tmp_path / "b", lr=2e-3)
    found = compare([tmp_path / name for name in ("a", "copy", "b")])
    assert sorted(len(row["seeds"]) for row in found["experiments"]) == [1, 1]
    assert found["pairs"][0]["differs"] is None
    assert "cannot be known" in found["verdict"][-1]


def test_a_planted_pair_of_equal_recipes_is_not_called_different_in_19_of_20_draws(tmp_path):
    called = 0
    for draw in range(20):
        folder = tmp_path / str(draw)
        for lr in (1e-3, 2e-3):
            for seed in (1, 2, 3):
                write_run(folder / f"{draw}-{lr}-{seed}", lr=lr, seed=seed, floor=3.0, noise=0.02)
        called += compare(sorted(folder.iterdir()))["pairs"][0]["differs"]
    assert called <= 1


def test_losses_are_taken_at_the_same_tokens_where_a_run_still_goes_on(tmp_path):
    runs = [write_run(tmp_path / "a", lr=1e-3), write_run(tmp_path / "b", lr=2e-3, steps=100, reason=None)]
    found = compare(runs)
    assert [row["mean"] is None for row in found["experiments"]] == [False, True]
    assert any("--by tokens" in note for note in found["notes"])
    found = compare(runs, by="tokens")
    assert found["at"] == 100 * BATCH_TOKENS
    rows = by_label(found)
    at_100 = next(y for x, y in rows["lr=0.001"]["runs"][0]["curves"]["step"] if x == 100)
    assert rows["lr=0.001"]["mean"] == pytest.approx(at_100)
    assert rows["lr=0.002"]["runs"][0]["state"] == "interrupted"


def test_a_run_that_was_evaluated_at_its_start_alone_is_left_out(tmp_path):
    runs = [write_run(tmp_path / "a", lr=1e-3), write_run(tmp_path / "b", lr=2e-3, steps=50, reason=None)]
    first = {"step": 0, "split": "val", "tokens": 0, "seconds": 0.0, "loss": 7.6, "bits_per_byte": 3.9}
    for run in runs:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        kept = rows if run.name == "a" else [row for row in rows if '"val"' not in row]
        (run / "metrics.jsonl").write_text("\n".join([json.dumps(first), *kept]) + "\n")
    found = compare(runs, by="time")
    assert found["at"] == found["experiments"][0]["runs"][0]["seconds"]
    assert [row["label"] for row in found["experiments"] if row["mean"]] == ["lr=0.001"]
    assert "Not evaluated since the start yet, and so not compared: b." in found["notes"]


def test_a_loss_between_evaluations_far_apart_is_said_to_be_rough(tmp_path):
    runs = [write_run(tmp_path / "a", lr=1e-3), write_run(tmp_path / "b", lr=2e-3, steps=100, reason=None)]
    assert not any("straight line" in note for note in compare(runs, by="tokens")["notes"])
    rows = (runs[0] / "metrics.jsonl").read_text().splitlines()
    vals = [row for row in rows if '"val"' in row]
    (runs[0] / "metrics.jsonl").write_text("\n".join([vals[0], vals[-1]]) + "\n")
    notes = compare(runs, by="tokens")["notes"]
    assert any("straight line" in note and note.endswith("the loss of a.") for note in notes)


def test_another_tokenizer_is_compared_in_bits_a_byte(tmp_path):
    other = TEXT | {"fingerprint": "e" * 64, "tokenizer": "u" * 64}
    a = write_run(tmp_path / "a", floor=3.0, noise=0)
    b = write_run(tmp_path / "b", floor=3.3, noise=0, text=other, bytes_per_token=3.5, model={"vocab_size": 6000})
    found = compare([a, b])
    assert found["unit"] == "bits_per_byte"
    # more nats a token, but a token is more text
    assert [row["runs"][0]["name"] for row in found["experiments"]] == ["b", "a"]
    assert found["baselines"] is not None and "bits a byte" in found["notes"][0]


def test_other_held_out_text_is_refused_with_the_reason(tmp_path):
    other = TEXT | {"fingerprint": "e" * 64, "held_out": [150, 90_000, 50_000]}
    with pytest.raises(
        UserError, match=r"different held-out text \(data/docs, 142 documents.* 150 documents.*diagnose"
    ):
        compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", text=other)])


def test_runs_of_earlier_versions_are_timed_by_their_speed(tmp_path):
    run = read_runs([write_run(tmp_path / "a", text=None, seconds=False)])[0]
    # steps of 1024 tokens at 2048 tokens a second
    assert run.curve("time", split="val")[-1][0] == pytest.approx(STEPS * 0.5)
    assert run.curve("bytes")[-1][0] == pytest.approx(STEPS * BATCH_TOKENS * 2.8)
    found = compare(
        [write_run(tmp_path / name, text=None, seconds=False, lr=lr) for name, lr in (("b", 1e-3), ("c", 2e-3))]
    )
    assert found["unit"] == "nats_per_token"


def test_metrics_alone_can_be_compared(tmp_path):
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, seed=1)
        for file in ("run.json", "ds_config.json", "summary.json", "samples.jsonl"):
            (folder / file).unlink()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 210, "split": "va')  # it is being written
    found = compare([tmp_path / "a", tmp_path / "b"], by="time")
    assert len(found["experiments"]) == 2 and found["differences"] == {}


def test_a_diverged_run_is_counted_and_not_judged(tmp_path):
    runs = [
        write_run(tmp_path / f"{seed}", seed=seed, reason="diverged: loss" if seed == 3 else "finished")
        for seed in (1, 2, 3)
    ]
    found = compare(runs)
    (row,) = found["experiments"]
    assert row["seeds"] == [1, 2] and [run["state"] for run in row["runs"]].count("diverged") == 1
    assert "2 seeds" in found["verdict"][0]


def test_a_summary_from_before_the_run_went_on_is_out_of_date(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").write_text(json.dumps({"reason": "finished", "steps": 100, "total_steps": 100}))
    assert read_runs([folder])[0].state == "interrupted"


def test_what_else_lies_in_the_folder_of_a_sweep_is_passed_over(tmp_path):
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    (tmp_path / "logs").mkdir()
    (tmp_path / "comparison.html").touch()
    with pytest.raises(UserError, match="is not a run"):
        read_runs(sorted(tmp_path.iterdir()))
    (tmp_path / "sweep.json").write_text("{}")
    assert [run.record.folder for run in read_runs(sorted(tmp_path.iterdir()))] == runs
    with pytest.raises(UserError, match="no such folder"):
        read_runs([*runs, tmp_path / "c"])


def test_the_first_crossing_of_a_loss_is_interpolated():
    assert reached([(0, 8.0), (10, 4.0), (20, 2.0)], 3.0) == 15
    assert reached([(0, 8.0)], 3.0) is None
    assert reached([(5, 2.0)], 3.0) == 5


def test_samples_of_one_prompt_stand_side_by_side(tmp_path):
    found = compare([write_run(tmp_path / name, lr=lr) for name, lr in (("a", 1e-3), ("b", 2e-3))])
    (sample,) = found["samples"]
    assert sample["prompt"] == "飞桨的安装"
    assert {(row["label"], row["step"]) for row in sample["texts"]} == {("lr=0.001", STEPS), ("lr=0.002", STEPS)}


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_prints_a_table_in_both_languages(tmp_path, capsys):
    runs = [str(write_run(tmp_path / f"{lr}", lr=lr, floor=3 + lr)) for lr in (0.1, 0.2)]
    assert script.main([*runs, "--by", "time", "--lang", "zh"]) == 0
    assert "配置差异" in capsys.readouterr().out
    assert script.main([*runs, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found["experiments"]] == ["lr=0.1", "lr=0.2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder: give folders of runs"),
        (["."], r"\. is not a run of train.py"),
        (["a", "--by", "hours"], "--by"),
        (["a", "--html", "no/page.html"], "--html no/page.html: there is no folder"),
    ],
)
def test_wrong_input_gets_one_sentence(flags, message, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    write_run(Path("a"))
    assert script.main(flags) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1

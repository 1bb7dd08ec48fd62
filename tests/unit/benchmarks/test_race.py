"""The race's clock, yardstick, search and verdict, without a peer."""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.inputs import Skip
from benchmarks.race import flags as race_flags
from benchmarks.race import heldout, race
from benchmarks.race import picture as race_picture
from benchmarks.race import table as race_table
from benchmarks.race.peers import Course, Point, Settings, kept_steps, minimind, nanogpt, score
from benchmarks.race.peers.minimind import MiniMind, _Run
from benchmarks.race.peers.nanogpt import NanoGPT
from benchmarks.race.peers.process import Clock, follow
from benchmarks.race.peers.search import Memory, Trial, search
from common.errors import UserError


def test_the_clock_leaves_out_start_up_and_pauses():
    # 10 s of start-up, 2 s a step, 5 s of saving after step 2
    clock = Clock([(1, 12), (2, 14), (3, 21), (4, 23)], {2})
    assert (clock.step_seconds, clock.start_up, clock.paused) == (2, 10, 5)
    assert [clock.training(step) for step in (1, 2, 3, 4)] == [2, 4, 6, 8]


def test_the_clock_of_sparse_marks_with_a_pause_inside_an_interval():
    clock = Clock([(1, 11), (5, 15), (10, 29), (15, 34)], {7})
    assert (clock.step_seconds, clock.start_up, clock.paused) == (1, 10, 9)
    assert clock.training(7) == 7
    assert clock.training(15) == 15


def test_a_slow_stretch_that_is_no_pause_counts():
    clock = Clock([(1, 1), (2, 2), (3, 9), (4, 10)])
    assert clock.training(4) == 10
    assert clock.paused == 0


def test_a_pause_shorter_than_the_noise_takes_nothing_away():
    assert Clock([(1, 1), (2, 2), (3, 2.9), (4, 3.9)], {2}).training(4) == pytest.approx(3.9)


def test_a_clock_needs_two_marks():
    with pytest.raises(ValueError, match="two marks"):
        Clock([(1, 2.0)])


def test_kept_places_are_denser_early_and_have_the_last_step():
    kept = kept_steps(600, 25, 10)
    gaps = [after - before for before, after in pairwise(kept)]
    assert kept[0] == 25
    assert kept[-1] == 600
    assert 8 <= len(kept) <= 10
    assert gaps == sorted(gaps)
    assert all(step % 25 == 0 for step in kept)
    assert kept_steps(7, 3, 10) == [3, 6, 7]
    assert kept_steps(60, 60, 1) == [60]


def test_every_token_is_predicted_once_whatever_the_window():
    ids = [1, *range(10, 21), 2]
    for length in (1, 3, 4, 12, 50):
        predicted = [token for window in heldout.windows(ids, length) for token in window[1:]]
        assert predicted == ids[1:]
        assert all(len(window) <= length + 1 for window in heldout.windows(ids, length))


def test_nats_of_a_model_with_known_probabilities():
    """A model that gives probability 1/2 to the token after its input and nothing else depends on what it reads."""
    ids = np.array([[1, 2, 3, 4], [5, 6, 0, 0], [7, 3, 4, 0]])
    lengths = np.array([4, 2, 3])

    def logits(ids_BT: torch.Tensor) -> torch.Tensor:
        next_one = torch.nn.functional.one_hot(ids_BT + 1, 10).double()
        return (next_one * 0.5 + (1 - next_one) * 0.5 / 9).log()

    expected = 5 * math.log(2) + math.log(18)  # 7 -> 3 is the only surprise
    assert score.nats(logits, ids, lengths) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_ours_is_judged_in_a_process_of_its_own(tmp_path, tiny_model_folder):
    folder, vocabulary = tiny_model_folder
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(0, vocabulary, (5, 9)), np.array([9, 9, 4, 2, 7])
    np.savez(tmp_path / "rows.npz", ids=ids, lengths=lengths)
    held_out = heldout.HeldOut(tmp_path / "rows.npz", 100, int((lengths - 1).sum()))
    [found] = heldout.judge(held_out, "ours", [folder], threads=1)
    # weights as they were at the start know nothing
    assert found.nats_per_token == pytest.approx(math.log(vocabulary), abs=0.2)
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * held_out.tokens / math.log(2) / 100)


@pytest.fixture
def tiny_model_folder(tmp_path):
    from model import CausalLM, ModelConfig, save_model

    config = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        moe_intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
    )
    torch.manual_seed(0)
    weights = {name: 0.02 * torch.randn_like(weight) for name, weight in CausalLM(config).state_dict().items()}
    save_model(tmp_path / "model", config, weights)
    return tmp_path / "model", 50


def _searched(best: Settings, tmp_path: Path, budget: float = 1e9) -> tuple[list[str], Settings]:
    """Search a bowl whose bottom is at `best`."""
    asked = []

    def run(settings: Settings) -> Trial:
        asked.append(str(settings))
        far = [math.log2(settings.learning_rate / best.learning_rate), math.log2(settings.batch / best.batch)]
        return Trial(settings, sum(map(abs, far)), 1.0, 10.0)

    found = search(
        run,
        [1e-3, 2e-3, 4e-3],
        [2, 8, 32],
        budget=budget,
        memory=Memory(tmp_path / "memory.json", "key"),
        say=lambda line: None,
    )
    return asked, found.best.settings


@pytest.mark.parametrize(
    "best",
    [
        Settings(2e-3, 8),
        Settings(8e-3, 8),
        Settings(1.25e-4, 2),
        Settings(2e-3, 32),
        Settings(5e-4, 1),
        Settings(2e-3, 4),
    ],
)
def test_the_search_finds_the_bottom_also_beyond_its_grid(tmp_path, best):
    found = _searched(best, tmp_path)[1]
    assert found.batch == best.batch
    assert found.learning_rate == pytest.approx(best.learning_rate, rel=0.05)


def test_the_search_keeps_to_its_budget_and_remembers(tmp_path):
    asked, _ = _searched(Settings(2e-3, 8), tmp_path, budget=40)
    assert len(asked) == 4
    again, best = _searched(Settings(2e-3, 8), tmp_path)
    assert not set(asked) & set(again)
    assert best == Settings(2e-3, 8)


def _curve(*bits: float) -> list[dict]:
    return [
        {
            "step": 10 * n,
            "tokens": 1000 * n,
            "text_bytes": 3000 * n,
            "seconds": 2.0 * n,
            "since_start": 30 + 2.0 * n,
            "bits_per_byte": b,
        }
        for n, b in enumerate(bits, 1)
    ]


def test_the_crossing_lies_on_the_line_between_two_points():
    found = race_table.crossing(_curve(4, 3, 2, 1), 2.5)
    assert found == {"step": 25, "tokens": 2500, "text_bytes": 7500, "seconds": 5.0, "since_start": 35.0}


def test_the_first_crossing_counts_and_a_first_point_below_is_itself():
    assert race_table.crossing(_curve(4, 2, 3, 1), 2)["step"] == 20
    assert race_table.crossing(_curve(1.5, 1), 2)["step"] == 10
    assert race_table.crossing(_curve(4, 3), 2) is None


def _side(bits: list[float], speed: float) -> dict:
    curve = _curve(*bits)
    return {
        "curve": curve,
        "tokens_per_second": speed,
        "text_bytes_per_second": 3 * speed,
        "precision": "fp32",
        "steps": 10 * len(bits),
        "seconds": 2.0,
        "start_up": 30.0,
        "paused": 1.0,
        "command_seconds": 33.0,
        "tokens": curve[-1]["tokens"],
        "parameters": 1000,
    }


def _result(ours_bits: list[float]) -> dict:
    peer, mine = _side([5, 4, 3, 2], 100.0), _side(ours_bits, 300.0)
    mine["against_peer"] = race_table.compare(mine, peer)
    return {
        "text": {"documents": 5, "bytes": 10, "train": "t", "held_out_bytes": 7},
        "cores": 2,
        "size": {"width": 8, "layers": 1, "max_seq_len": 16},
        "ours": {"best": mine},
        "peer": peer
        | {
            "name": "<Peer>",
            "source": "abc",
            "recommended": "",
            "search": {"given": True},
            "chosen": {"learning_rate": 1e-3, "batch": 8},
        },
    }


def test_ratios_are_the_peers_end_over_our_crossing():
    found = _result([3, 1])["ours"]["best"]["against_peer"]
    assert found["reached"]["seconds"] == 3.0
    assert found["seconds_ratio"] == pytest.approx(8 / 3)
    assert found["since_start_ratio"] == pytest.approx(38 / 33)
    assert found["text_bytes_ratio"] == pytest.approx(12000 / 4500)
    assert found["tokens_per_second_ratio"] == 3


def test_a_race_that_is_lost_says_so():
    result = _result([4, 3])
    assert result["ours"]["best"]["against_peer"]["seconds_ratio"] is None
    assert "  it never comes to the peer's final loss" in race.table(result)
    json.dumps(result, allow_nan=False)


def test_the_table_and_the_picture_have_both_sides():
    result = _result([3, 1])
    text = "\n".join(race.table(result))
    assert "2.7 times faster" in text
    assert "| <Peer> | fp32 |" in text
    picture = race_picture.svg(result)
    ElementTree.fromstring(picture)
    assert picture.count("<polyline") == 6
    assert "&lt;Peer&gt;, fp32: 2.00" in picture
    assert "ours, fp32: 1.00" in picture


def test_one_run_that_is_both_precisions_is_shown_once():
    result = _result([3, 1])
    result["ours"]["equal"] = json.loads(json.dumps(result["ours"]["best"]))
    text = "\n".join(race.table(result))
    assert text.count("ours, best precision, which is the peer's") == 3
    assert "ours, best precision (" not in text and "ours, the peer's precision" not in text
    assert race_picture.svg(result).count("<polyline") == 6


def test_the_peers_side_of_an_earlier_race_only_for_the_same_race(tmp_path):
    path, result = tmp_path / "race.json", _result([3, 1]) | {"shape": {"hidden_size": 8}}
    path.write_text(json.dumps({"race": result}), encoding="utf-8")
    same = {name: result[name] for name in ("text", "size", "shape", "cores")}
    taken = race.earlier(path, same, "abc")
    assert taken["curve"] == result["peer"]["curve"]
    assert "EARLIER RUN" in "\n".join(race.table(result | {"peer": taken}))
    with pytest.raises(UserError, match="differs in cores, the peer's version"):
        race.earlier(path, same | {"cores": 4}, "abd")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="no result of a race"):
        race.earlier(path, same, "abc")


def test_ticks_are_round_and_within_and_labels_keep_apart():
    assert race_picture.ticks(0, 870) == [0, 200, 400, 600, 800]
    assert race_picture.ticks(1.31, 1.94) == [1.4, 1.6, 1.8]
    assert race_picture.spread([100, 104, 50], 15) == [100, 115, 50]


def test_without_a_peer_the_race_is_skipped_and_says_how_to_get_one(tmp_path):
    parser = argparse.ArgumentParser()
    race.add_flags(parser)
    flags = parser.parse_args([])
    with pytest.raises(Skip, match="git clone"):
        race.measure(tmp_path, flags, print)
    with pytest.raises(UserError, match="no trainer that the race knows"):
        race.driver(tmp_path, tmp_path / "work", race.Size(8, 1, 16), 2, [], None)


def test_the_peers_tokenizer_is_run_only_where_it_is_another():
    assert race.default_runs(SimpleNamespace(own_tokenizer=True)) == ["best", "equal", "same_tokenizer"]
    assert race.default_runs(SimpleNamespace(own_tokenizer=False)) == ["best", "equal"]


def test_settings_are_read_or_refused():
    assert race_flags.peer_settings("lr=2e-3,batch=8") == Settings(2e-3, 8)
    for wrong in ("2e-3", "lr=x,batch=8", "lr=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="not of the form"):
            race_flags.peer_settings(wrong)


def test_a_command_that_fails_shows_its_last_lines(tmp_path):
    seen = []
    code = "import os; print('one'); print(os.environ['WORD']); raise SystemExit(3)"
    with pytest.raises(UserError, match=r"(?s)status 3.*one\nword"):
        follow(
            [sys.executable, "-c", code],
            folder=tmp_path,
            log=tmp_path / "log",
            environment={"WORD": "word"},
            on_line=lambda line, seconds: seen.append((line, seconds >= 0)),
        )
    assert seen == [("one\n", True), ("word\n", True)]
    assert (tmp_path / "log").read_text() == "one\nword\n"


_FAKE_TRAINER = """
import argparse, pathlib, time
parser = argparse.ArgumentParser()
for name in ("save_dir", "data_path"):
    parser.add_argument(f"--{name}", type=pathlib.Path)
for name in ("batch_size", "save_interval"):
    parser.add_argument(f"--{name}", type=int)
args, _ = parser.parse_known_args()
steps = -(-len(args.data_path.read_text().splitlines()) // args.batch_size)
args.save_dir.mkdir()
for step in range(1, steps + 1):
    time.sleep(0.02)
    print(f"Epoch:[1/1]({step}/{steps}), loss: 1.0", flush=True)
    if step % args.save_interval == 0 or step == steps:
        (args.save_dir / "pretrain_8_moe.pth").write_text(str(step))
"""


def test_the_weights_that_are_kept_are_those_of_their_steps(tmp_path, tokenizer_file):
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": "abc" * n}) + "\n" for n in range(1, 101)), encoding="utf-8")
    peer = MiniMind.__new__(MiniMind)
    peer.size, peer.threads, peer.tokenizer = race.Size(8, 1, 100), 2, tokenizer_file
    run = _Run(peer, Settings(1e-3, 2), documents, tmp_path / "run", 5)
    script = tmp_path / "train_pretrain.py"
    script.write_text(_FAKE_TRAINER, encoding="utf-8")
    course: Course = run.course(
        follow(run.command, folder=tmp_path, log=tmp_path / "log", environment={}, on_line=run.line)
    )
    assert course.steps == 50
    assert course.points[-1].step == 50
    assert all(isinstance(point, Point) and point.weights.read_text() == str(point.step) for point in course.points)
    assert course.tokens == course.points[-1].tokens == sum(run.lengths) < 100 * 100
    assert course.points[0].tokens == course.tokens * 2 * course.points[0].step // 100


_FAKE_NANOGPT = """
import pathlib, sys, time
flags = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])
steps, interval, out = int(flags["max_iters"]), int(flags["eval_interval"]), pathlib.Path(flags["out_dir"])
out.mkdir()
for step in range(steps + 1):
    if step and step % interval == 0:
        (out / "ckpt.pt").write_text(str(step))
    time.sleep(0.02)
    print(f"iter {step}: loss 1.0, time 1ms, mfu 1%", flush=True)
"""


def test_nanogpt_weights_are_those_of_their_steps_too(tmp_path, tokenizer_file):
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"text": "abc" * 700}) + "\n", encoding="utf-8")
    peer = NanoGPT.__new__(NanoGPT)
    peer.size, peer.threads, peer.tokenizer, peer.vocabulary = race.Size(8, 1, 10), 2, tokenizer_file, 300
    peer.bos_id, peer.eos_id, peer.pythonpath = 1, 2, tmp_path / "nanogpt"
    peer.pythonpath.mkdir()
    (peer.pythonpath / "train.py").write_text(_FAKE_NANOGPT, encoding="utf-8")
    course = peer.train(Settings(1e-3, 2), documents, tmp_path / "run", 4)
    assert [int(point.weights.read_text()) for point in course.points] == [point.step for point in course.points]
    assert course.points[-1].step == course.steps
    assert [point.tokens for point in course.points] == [20 * point.step for point in course.points]
    ids = np.fromfile(peer.pythonpath / "data" / "race" / "train.bin", dtype=np.uint16)
    assert (ids[0], ids[-1]) == (1, 2)
    assert course.tokens <= len(ids)


def test_each_peer_is_known_by_what_lies_in_its_folder(tmp_path):
    (tmp_path / "train.py").touch()
    assert not nanogpt.is_here(tmp_path)
    (tmp_path / "model.py").write_text("class GPTConfig: ...", encoding="utf-8")
    assert nanogpt.is_here(tmp_path)
    assert not minimind.is_here(tmp_path)
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "train_pretrain.py").touch()
    assert minimind.is_here(tmp_path)


@pytest.fixture
def tokenizer_file(tmp_path) -> Path:
    from corpus.tokenizer import train_tokenizer

    path = tmp_path / "tokenizer.json"
    train_tokenizer(iter(["abc abc cab"]), 300).save(str(path))
    return path

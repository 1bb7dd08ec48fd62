"""A run on conversations that begins from another model: checked, interrupted in the middle, and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from corpus.shards import Corpus, MaskedStream
from corpus.tokenizer import train_tokenizer, vocab_size, write_hf_tokenizer
from model import CausalLM, ModelConfig, load_model, save_model
from model.init import init_weights
from model.loss import IGNORED
from sample_stories.questions import ask, write_questions
from training.data_sampler import tensors

pytestmark = pytest.mark.slow
PACE = {
    "max_steps": 8,
    "save_interval": 4,
    "keep_last": 5,
    "log_interval": 1,
    "eval_interval": 4,
    "sample_interval": 4,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has learned nothing, and conversations about 60 stories beside it."""
    folder = tmp_path_factory.mktemp("tuning")
    tokenizer = train_tokenizer((story.prompt() for story in ask(60, 1, hamlet=True)), 600)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = ModelConfig(
        vocab_size=vocab_size(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        moe_intermediate_size=24,
    )
    model = CausalLM(config)
    init_weights(model, config, seed=1)
    save_model(folder / "base", config, dict(model.named_parameters()))
    write_hf_tokenizer(folder / "tokenizer.json", folder / "base")
    write_questions(folder / "chats.jsonl", 60, 1, hamlet=True)
    return folder / "base"


@pytest.fixture(scope="module")
def train(base: Path, processes_in: Any, train_py: Path) -> Callable[..., str]:
    """Run train.py on the conversations, from the base unless the flags name another; return what it printed."""
    pace = [word for name, value in PACE.items() for word in (f"--{name}", str(value))]

    def run(output: str, *more: str, status: int = 0) -> str:
        slow = [
            "--set",
            "optimizer.params.muon_lr=0.005",
            "optimizer.params.adam_lr=5e-3",
        ]  # the base shows for 8 steps
        arguments = ["--init_from", "base", "--data", "chats.jsonl", "--output", output, *pace, *slow, *more]
        done = processes_in(base.parent).ranks(1, [train_py, *arguments])
        assert done.status == status, done.output
        return done.output

    return run


@pytest.fixture(scope="module")
def tuned(train: Callable[..., str], base: Path) -> Path:
    """A run of 8 steps."""
    assert "conversations: " in train("runs/tuned", "--skip_preflight")
    return base.parent / "runs" / "tuned"


def rows_of(file: Path) -> list[dict[str, Any]]:
    times = ("tokens_per_second", "probe_seconds", "seconds")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_it_begins_with_the_weights_of_the_base_and_learns(tuned: Path, base: Path) -> None:
    val = [row for row in rows_of(tuned / "metrics.jsonl") if row["split"] == "val"]
    assert val[-1]["loss"] < val[0]["loss"]
    assert {"empty_answers", "endless_answers", "answer_tokens", "true_copying"} <= val[-1].keys()
    before, now = (load_file(folder / "model.safetensors") for folder in (base, tuned / "model"))
    apart = [((before[name] - now[name]).norm() / before[name].norm()).item() for name in before]
    assert 0 < max(apart) < 1  # drawn anew, they would be about 1.4 apart


def test_the_validation_loss_is_that_of_the_answers(tuned: Path) -> None:
    corpus = Corpus.open(Path(tuned.parents[1], json.loads((tuned / "run.json").read_text())["corpus"]))
    stream, model = corpus.split("val"), load_model(tuned / "model")
    assert isinstance(stream, MaskedStream)
    ids, targets = tensors(stream, list(range(stream.num_rows(256))), 256, torch.device("cpu"))
    with torch.no_grad():
        loss = model.float().loss_sum(ids, targets).item() / int((targets != IGNORED).sum())
    best = min(row["loss"] for row in rows_of(tuned / "metrics.jsonl") if row["split"] == "val" and row["step"])
    assert loss == pytest.approx(best, rel=0.02)  # training may compute in bf16


def test_a_run_continued_in_the_middle_is_the_same_bit_for_bit(train: Callable[..., str], tuned: Path) -> None:
    again = tuned.with_name("again")
    shutil.copytree(tuned, again)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    shutil.rmtree(again / "model")
    assert "(step 4)" in train("runs/again", "--skip_preflight")
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (tuned, again)]
    assert weights[0] == weights[1]
    assert rows_of(tuned / "metrics.jsonl") == rows_of(again / "metrics.jsonl")
    assert rows_of(tuned / "samples.jsonl") == rows_of(again / "samples.jsonl")


def test_the_checks_pass_on_such_a_run(train: Callable[..., str], tuned: Path) -> None:
    output = train("runs/checked", "--init_from", str(tuned), "--preflight")
    assert " 0 failed" in output and "with the weights of --init_from" in output and "counts: the answers" in output

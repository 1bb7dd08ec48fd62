"""A run on conversations that begins from a trained model: checked, interrupted in the middle, and continued."""

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
from model import load_model
from model.loss import IGNORED
from training.data_sampler import tensors

pytestmark = pytest.mark.slow
PACE = {
    "max_steps": 8,
    "save_interval": 4,
    "keep_last": 5,
    "log_interval": 1,
    "eval_interval": 4,
    "sample_interval": 4,
    "max_seq_len": 64,
}


@pytest.fixture(scope="module")
def chats(workplace: Path) -> str:
    """Conversations of one and of two exchanges, some in Alpaca's shape."""
    lines: list[dict[str, Any]] = []
    for i in range(400):
        question, answer = f"{i % 17}加{i}", f"是{i + i % 17}" + "了。" * (i % 3)
        exchange = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append({"messages": exchange * (1 + i % 2)} if i % 5 else {"instruction": question, "output": answer})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (workplace / "chats.jsonl").write_text(text, encoding="utf-8")
    return "chats.jsonl"


@pytest.fixture(scope="module")
def arguments(finished_run: Path, chats: str) -> Callable[..., list[str]]:
    """Return the flags of a run from the finished one, in fp32."""
    pace = [word for name, value in PACE.items() for word in (f"--{name}", str(value))]
    config = Path(__file__).parents[2] / "ds_configs" / "t4x2_sft.json"
    small = ["train_batch_size=16", "train_micro_batch_size_per_gpu=4", "gradient_accumulation_steps=2"]
    return lambda output, *more: [
        *("--init_from", str(finished_run), "--data", chats, "--output", output, "--deepspeed_config", str(config)),
        *("--set", "fp16.enabled=false", "optimizer.params.lr=1e-3", *small, *pace, *more),
    ]


@pytest.fixture(scope="module")
def tuned(processes: Any, train_py: Path, arguments: Callable[..., list[str]], workplace: Path) -> Path:
    """A run of 8 steps on 2 processes, checked before."""
    done = processes.ranks(2, [train_py, *arguments("runs/tuned")])
    assert done.status == 0, done.output
    assert "conversations: " in done.output and " 0 failed" in done.output, done.output
    return workplace / "runs" / "tuned"


def rows_of(file: Path) -> list[dict[str, Any]]:
    times = ("tokens_per_second", "probe_seconds", "seconds")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_it_begins_with_the_weights_of_the_base_and_learns(tuned: Path, finished_run: Path) -> None:
    val = [row["loss"] for row in rows_of(tuned / "metrics.jsonl") if row["split"] == "val"]
    assert val[-1] < val[0]
    base, now = (load_file(run / "model" / "model.safetensors") for run in (finished_run, tuned))
    apart = [((base[name] - now[name]).norm() / base[name].norm()).item() for name in base]
    assert 0 < max(apart) < 0.5


def test_the_validation_loss_is_that_of_the_answers(tuned: Path) -> None:
    corpus = Corpus.open(Path(tuned.parents[1], json.loads((tuned / "run.json").read_text())["corpus"]))
    stream, model = corpus.split("val"), load_model(tuned / "model")
    assert isinstance(stream, MaskedStream)
    ids, targets = tensors(stream, list(range(stream.num_rows(64))), 64, torch.device("cpu"))
    with torch.no_grad():
        loss = model.loss_sum(ids, targets).item() / int((targets != IGNORED).sum())
    best = min(row["loss"] for row in rows_of(tuned / "metrics.jsonl") if row["split"] == "val" and row["step"])
    assert loss == pytest.approx(best, rel=1e-5)


def test_a_run_continued_in_the_middle_is_the_same_bit_for_bit(
    processes: Any, train_py: Path, arguments: Callable[..., list[str]], tuned: Path
) -> None:
    again = tuned.with_name("tuned-again")
    shutil.copytree(tuned, again)
    shutil.rmtree(again / "checkpoints" / "step-00000008")
    shutil.rmtree(again / "model")
    done = processes.ranks(2, [train_py, *arguments("runs/tuned-again")])
    assert done.status == 0 and "(step 4)" in done.output, done.output
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (tuned, again)]
    assert weights[0] == weights[1]
    assert rows_of(tuned / "metrics.jsonl") == rows_of(again / "metrics.jsonl")
    assert rows_of(tuned / "samples.jsonl") == rows_of(again / "samples.jsonl")


def test_a_base_with_another_tokenizer_is_refused(
    processes: Any, train_py: Path, arguments: Callable[..., list[str]], finished_run: Path, tmp_path: Path
) -> None:
    corpus = json.loads((finished_run / "run.json").read_text())["corpus"]
    base = tmp_path / "base"
    shutil.copytree(finished_run / "model", base)
    text = (base / "tokenizer.json").read_text(encoding="utf-8").replace('"user"', '"resu"')
    tokenizer = json.loads(text)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    done = processes.ranks(1, [train_py, *arguments("runs/refused", "--init_from", base, "--data", corpus)])
    assert done.status == 2 and "was prepared with another tokenizer than that of --init_from" in done.output

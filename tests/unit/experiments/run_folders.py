"""Folders of runs as train.py leaves them, with curves that are made up: a loss falls to `floor` plus noise."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

STEPS, EVERY, BATCH_TOKENS = 200, 10, 1024
BASELINES = {"uniform": 7.6, "unigram": 6.5, "bigram": 3.7, "trigram": 2.5}
TEXT = {
    "fingerprint": "f" * 64,
    "tokenizer": "t" * 64,
    "held_out": [142, 100_000, 60_000],
    "ngram_baselines": BASELINES | {"bytes_per_token": 2.8, "tokens": 5000, "train_tokens": 90_000},
}


def write_run(
    folder: Path,
    *,
    seed: int | None = 1,
    floor: float = 3.0,
    noise: float = 0.01,
    lr: float = 1e-3,
    steps: int = STEPS,
    reason: str | None = "finished",
    bytes_per_token: float = 2.8,
    text: dict[str, Any] | None = TEXT,
    model: dict[str, Any] | None = None,
    seconds: bool = True,
    **ds_config: Any,
) -> Path:
    """Write a run of STEPS steps that has come to `steps`; `seconds` is missing in those of earlier versions."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{folder.name}{seed}{lr}{floor}")
    rows = _rows(draw, floor + draw.gauss(0, noise), steps, bytes_per_token)  # what the seed does to the whole curve
    if not seconds:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    _write_lines(folder / "metrics.jsonl", rows)
    _write_lines(
        folder / "samples.jsonl",
        [
            {"step": step, "prompt": "飞桨的安装", "text": f"方法见第 {step} 页，{folder.name}。" * 3}
            for step in (steps // 2, steps)
        ],
    )
    record = {
        "command": ["train.py"],
        "flags": {"seed": seed, "max_seq_len": 128, "eval_tokens": 200_000, "output": str(folder)},
        "model": {"vocab_size": 2000, "hidden_size": 64} | (model or {}),
        "corpus": "data/docs",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "deepspeed": "0.19.8"},
        "device": "a CPU (2 cores, 8.0 GiB)",
        "processes": 2,
    }
    _write(folder / "run.json", record | ({"text": text} if text else {}))
    config = {
        "train_batch_size": 8,
        "optimizer": {"type": "AdamW", "params": {"lr": lr, "betas": [0.9, 0.95]}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": STEPS}},
        "tensorboard": {"enabled": True, "output_path": str(folder)},
    }
    _write(folder / "ds_config.json", config | ds_config)
    if reason:
        _write(folder / "summary.json", {"reason": reason, "steps": steps, "total_steps": STEPS})
    return folder


def _rows(draw: random.Random, floor: float, steps: int, bytes_per_token: float) -> list[dict[str, Any]]:
    """Return lines of metrics, of training and of validation."""
    rows = []
    for step in range(0, steps + 1, EVERY):
        loss = floor + 4.5 * 0.975**step
        shared = {"step": step, "tokens": step * BATCH_TOKENS, "seconds": step * 0.5}
        if step:
            rows.append(shared | {"split": "train", "loss": loss - 0.05 + draw.gauss(0, 0.1)})
            rows[-1] |= {"tokens_per_second": 2 * BATCH_TOKENS}
        rows.append(shared | {"split": "val", "loss": loss, "repetition": 0.04, "true_repetition": 0.01})
    return [row | {"bits_per_byte": row["loss"] / math.log(2) / bytes_per_token} for row in rows]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

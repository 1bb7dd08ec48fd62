"""The example with trl and peft runs, and what it saves is a model of ours, for diagnose.py and export.py too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corpus.tokenizer import train_tokenizer, write_hf_tokenizer
from model import CausalLM, ModelConfig, load_model, save_model
from model.init import init_weights

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "max_position_embeddings": 128,
}


@pytest.mark.slow
def test_a_few_steps_of_preferences_change_attention_alone(tmp_path: Path) -> None:
    for package in ("trl", "peft"):
        pytest.importorskip(package, reason=f"{package} is in requirements-examples.txt")
    config = ModelConfig(**SIZES)
    model = CausalLM(config)
    init_weights(model, config, seed=0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_model(tmp_path / "base", config, before)
    train_tokenizer(iter(["user\nassistant\nsystem\n山里有一座庙"] * 5), 300).save(str(tmp_path / "tokenizer.json"))
    write_hf_tokenizer(tmp_path / "tokenizer.json", tmp_path / "base")
    pair = {"prompt": "山里有什么？", "chosen": "一座庙。", "rejected": "一座山。"}
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps(pair, ensure_ascii=False) + "\n" + json.dumps(pair) + "\n", "utf-8"
    )
    flags = ["--model", tmp_path / "base", "--preferences", tmp_path / "pairs.jsonl", "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "examples.preferences", *flags, "--steps", "3", "--batch_size", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    after = load_model(tmp_path / "out" / "model", dtype=torch.float32).state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed and all("self_attn" in name and "norm" not in name for name in changed)
    assert (tmp_path / "out" / "model" / "tokenizer.json").is_file()
    texts = [json.dumps({"text": f"山里有一座庙，庙里有{i}个和尚。" * 3}, ensure_ascii=False) for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts), "utf-8")
    for flags in (
        ["diagnose.py", "--data", tmp_path / "texts.jsonl", "--figures", "--json", tmp_path / "diagnosis.json"],
        ["export.py", "--gguf", tmp_path / "dpo.gguf"],
    ):
        command = [sys.executable, *flags, "--checkpoint", tmp_path / "out"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "diagnosis.json").is_file() and (tmp_path / "dpo.gguf").is_file()

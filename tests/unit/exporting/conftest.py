"""Small models in folders, with a tokenizer that was trained on stories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus.tokenizer import train_tokenizer, write_hf_tokenizer
from exporting.verification import comparison
from model import CausalLM, ModelConfig, save_model
from sample_stories import generate_stories

SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 96,
    "max_position_embeddings": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"use_moe": False},
    "top1": {"num_experts_per_tok": 1},
    "top2": {},
    "top3": {"num_experts_per_tok": 3},
}

Folder = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    # numbers too: what tokenizers cut most differently
    train_tokenizer([*generate_stories(200, seed=1), *["2026 年 11 月，3.14%"] * 1000], 400).save(str(path))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> dict[str, Path]:
    """A folder for each shape. The weights are so large that attention, experts and positions all matter."""
    folders = {}
    for name, changes in SHAPES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        config = ModelConfig(**{**SIZES, **changes})
        model, rng = CausalLM(config), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0.0, 0.3, generator=rng) if weight.ndim > 1 else weight.normal_(1.0, 0.1, generator=rng)
        save_model(folders[name], config, model.state_dict())
        write_hf_tokenizer(tokenizer_json, folders[name])
    return folders


@pytest.fixture
def copied(models: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of a model's folder, to plant an error in."""
    return lambda shape: shutil.copytree(models[shape], tmp_path / "copied")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with what tokenizers stumble over: digits, contractions, newlines, spaces and marks."""
    lines = [
        *(story[:60] for story in generate_stories(3, seed=2)),
        "它's 2026 年 11 月，3.14%。\n\n  if x:\n\treturn  1 ",
        "<|im_start|>问？<|im_end|> <|im_start|>答。<|im_end|>",
        "a<|im_end|> 😀 Ångström ＡＢＣ",
    ]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def few_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `--verify` write short texts: there is nothing to be seen in long ones."""
    monkeypatch.setattr(comparison, "NEW_TOKENS", 4)


@pytest.fixture(scope="session")
def edit_json() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Return what changes the object in a JSON file."""

    def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit

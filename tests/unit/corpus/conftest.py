"""Small corpora for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from corpus_data import make_texts, prepare, write_jsonl

from corpus.tokenizer import train_tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write texts to a file of the test's folder."""
    return lambda texts, name="input.jsonl": write_jsonl(tmp_path / name, texts)


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of ours with 400 entries."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(make_texts(300)), 400).save(str(path))
    return path


@pytest.fixture
def prepared(tmp_path: Path, jsonl: Callable[..., Path], tokenizer_json: Path) -> Path:
    """A prepared folder with several shards on both sides."""
    folder = tmp_path / "prepared"
    source = jsonl(make_texts(400))
    prepare([source], folder, tokenizer=tokenizer_json, val_fraction=0.2, shard_tokens=1000)
    return folder

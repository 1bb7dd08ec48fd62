"""A model that has learned nothing, and an application that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chat.checkpoint import load_checkpoint
from corpus.tokenizer import train_tokenizer, write_hf_tokenizer
from model import CausalLM, ModelConfig, save_model
from model.inference.prompts import PromptEncoder
from model.init import init_weights

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    use_moe=False,
    max_position_embeddings=256,
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder; its model has 256 positions."""
    folder = tmp_path_factory.mktemp("serving") / "tiny"
    model = CausalLM(CONFIG)
    init_weights(model, CONFIG, seed=0)
    save_model(folder / "model", CONFIG, dict(model.named_parameters()))
    train_tokenizer(iter(["user\nassistant\nsystem\n山里有一座庙"] * 5), 300).save(str(folder / "tokenizer.json"))
    write_hf_tokenizer(folder / "tokenizer.json", folder / "model")
    return folder


@pytest.fixture
def start(run: Path) -> Iterator[Callable]:
    """`start(parallel=1, key=None)`: a client of an application in this process."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from serving.app import Settings, create_app
    from serving.writer import Writer

    opened: list[TestClient] = []

    def started(*, parallel: int = 2, timeout: float = 60.0, key: str | None = None, hosts: frozenset | None = None):
        model, tokenizer = load_checkpoint(run / "model", "cpu")
        writer = Writer(model, tokenizer, parallel=parallel, timeout=timeout)
        app = create_app(writer, PromptEncoder(tokenizer, None), Settings("tiny", 100, key, hosts))
        client = TestClient(app)
        client.__enter__()
        opened.append(client)
        client.writer = writer
        return client

    yield started
    for client in opened:
        client.__exit__(None, None, None)

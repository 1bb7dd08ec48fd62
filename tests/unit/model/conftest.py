"""Small models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from model import CausalLM, ModelConfig, save_model
from model.init import init_weights

SHAPES = {
    "dense": {"use_moe": False},
    "top1": {"num_experts_per_tok": 1},
    "top2": {"num_experts_per_tok": 2},
    "top3of5": {"num_experts": 5, "num_experts_per_tok": 3},
}


def small_config(**changes) -> ModelConfig:
    """Weights ten times as large as in training: attention and experts then matter from the start."""
    small = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    return ModelConfig(**{**small, **changes})


def small_model(seed: int = 0, **changes) -> CausalLM:
    config = small_config(**changes)
    model = CausalLM(config)
    init_weights(model, config, seed)
    return model.eval()


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    return small_config


@pytest.fixture
def make_model() -> Callable[..., CausalLM]:
    return small_model


@pytest.fixture(params=SHAPES)
def any_model(request) -> CausalLM:
    """Each kind of feed-forward layer in turn."""
    return small_model(**SHAPES[request.param])


@pytest.fixture
def to_transformers(tmp_path):
    """The same network as transformers builds it from an exported folder."""
    transformers = pytest.importorskip("transformers")

    def convert(model: CausalLM):
        save_model(tmp_path / "exported", model.config, model.state_dict())
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").float().eval()

    return convert


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE so small that most Chinese characters are three tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["从前有座山，山里有座庙，庙里有个老和尚。" * 3], trainer)
    return tokenizer


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """What a run leaves in its `model/` folder; greedily, this model never writes a mark."""
    model = small_model()
    model.model.embed_tokens.weight.data[:3] = 0
    folder = tmp_path / "run" / "model"
    save_model(folder, model.config, model.state_dict())
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder

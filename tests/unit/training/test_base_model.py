"""`--init_from`: the sizes, the tokenizer and the weights of another model, ours or a Qwen3."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from common.errors import UserError
from corpus.tokenizer import train_tokenizer, write_hf_tokenizer
from model import CausalLM, ModelConfig, save_model
from model.init import init_weights
from training.base_model import load_base_weights, same_tokenizer, with_base
from training.config.command_line import Options, model_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
OURS = ModelConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    train_tokenizer(iter(["山里有一座庙"] * 5), 280).save(str(path))
    return path


@pytest.fixture
def run(tmp_path: Path, tokenizer_json: Path) -> Path:
    """A run with a model of ours."""
    model = CausalLM(OURS)
    init_weights(model, OURS, seed=3)
    save_model(tmp_path / "run" / "model", OURS, dict(model.named_parameters()))
    write_hf_tokenizer(tokenizer_json, tmp_path / "run" / "model")
    return tmp_path / "run"


def qwen3(folder: Path, tokenizer_json: Path, *, moe: bool, **more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    experts = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    model = (
        Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, intermediate_size=24, **more))
        if moe
        else Qwen3ForCausalLM(Qwen3Config(**SIZES, intermediate_size=24, **more))
    )
    model.eval().save_pretrained(folder)
    write_hf_tokenizer(tokenizer_json, folder)
    return model


def test_a_run_brings_its_sizes_tokenizer_and_weights(run: Path) -> None:
    options = with_base(Options(init_from=run, data=[Path("chats.jsonl")], model={"router_aux_loss_coef": 0.5}))
    assert options.init_from == run / "model" and options.tokenizer == run / "model" / "tokenizer.json"
    config = model_config(options, vocab_size=options.vocab_size or 0)
    assert replace(config, router_aux_loss_coef=OURS.router_aux_loss_coef) == OURS
    model, expected = CausalLM(config), CausalLM(OURS)
    load_base_weights(model, options.init_from)
    init_weights(expected, OURS, seed=3)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@pytest.mark.parametrize("moe", [False, True])
def test_a_qwen3_of_another_origin_computes_the_same(tmp_path: Path, tokenizer_json: Path, moe: bool) -> None:
    theirs = qwen3(tmp_path / "qwen", tokenizer_json, moe=moe)
    options = with_base(Options(init_from=tmp_path / "qwen", max_seq_len=64))
    ours = CausalLM(model_config(options, vocab_size=options.vocab_size or 0))
    load_base_weights(ours, tmp_path / "qwen")
    ids = torch.randint(3, 280, (2, 20))
    with torch.no_grad():
        assert torch.allclose(ours.logits(ids), theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"model_type": "llama"}, "is a 'llama'"),
        ({"vocab_size": 151_936}, "over 65,536"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "positions are scaled"),
        ({"hidden_size": "wide"}, "describes no network"),
    ],
)
def test_what_cannot_be_trained_is_named(
    tmp_path: Path, tokenizer_json: Path, change: dict[str, object], named: str
) -> None:
    qwen3(tmp_path / "qwen", tokenizer_json, moe=False)
    config = tmp_path / "qwen" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=named) as caught:
        with_base(Options(init_from=tmp_path / "qwen"))
    assert str(caught.value).startswith("--init_from") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("give the folder of a run, or of another model")


def test_flags_that_contradict_the_base_are_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"is another network than --hidden_size 64 \(32 there\): leave these out"):
        with_base(Options(init_from=run, model={"hidden_size": 64}))
    with pytest.raises(UserError, match="--vocab_size is for a tokenizer trained here"):
        with_base(Options(init_from=run, vocab_size=400))


def test_missing_parts_are_named(run: Path, tmp_path: Path) -> None:
    (run / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json: give a run"):
        with_base(Options(init_from=run))
    with pytest.raises(UserError, match="does not exist: give --init_from the folder of a run"):
        with_base(Options(init_from=tmp_path / "nowhere"))


def test_weights_of_another_shape_are_named(run: Path) -> None:
    model = CausalLM(replace(OURS, hidden_size=48))
    with pytest.raises(UserError, match=r"embed_tokens\.weight has the shape \(300, 32\)"):
        load_base_weights(model, run / "model")


def test_tokenizers_are_compared_by_how_they_encode(tokenizer_json: Path, run: Path) -> None:
    from corpus.tokenizer import load_tokenizer

    own, exported = load_tokenizer(tokenizer_json), load_tokenizer(run / "model" / "tokenizer.json")
    other = train_tokenizer(iter(["山里有一座庙"] * 5), 270)
    assert same_tokenizer(own, exported) and not same_tokenizer(own, other)

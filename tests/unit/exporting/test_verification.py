"""`--verify`: the trained model is found to be it, and each planted error is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import exporting.gguf_file
import exporting.gguf_tensors
import exporting.verification.structure
from common.errors import UserError
from evaluation.opened_model import open_own
from evaluation.token_losses import token_losses
from exporting.gguf_file import write_gguf
from exporting.pre_tokenizer import KNOWN
from exporting.quantization import TYPES
from exporting.verification.comparison import verify
from sample_stories import generate_stories

gguf = pytest.importorskip("gguf")
Copied, EditJson = Callable[[str], Path], Callable[..., None]
QWEN2 = next(steps for steps, name in KNOWN.items() if name == "qwen2")[0][1]


def verified(reference: Path, target: Path, texts: Path) -> tuple[bool, str]:
    """Return the verdict, and what was printed."""
    printed: list[str] = []
    same = verify(reference, [target], texts, most_documents=200, most_tokens=1024, say=printed.append)
    return same, "\n".join(printed)


def assert_named(reference: Path, target: Path, texts: Path, reason: str) -> None:
    same, printed = verified(reference, target, texts)
    assert not same
    assert f"NOT the trained model: {reason}" in printed, printed


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["dense", "top1", "top2", "top3"])
def test_the_folder_is_the_trained_model_in_transformers(models: dict[str, Path], texts: Path, shape: str) -> None:
    same, printed = verified(models[shape], models[shape], texts)
    assert same, printed
    assert "transformers            100.0%" in printed
    assert "6 of 6" in printed


def test_bits_a_byte_are_counted_with_and_without_eos(models: dict[str, Path], tmp_path: Path) -> None:
    network, tokenizer = open_own(models["dense"], dtype=torch.float32)
    documents, texts = [story[:60] for story in generate_stories(3, seed=5)], tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    ids = [[1, *tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in documents]
    losses = token_losses(torch.inference_mode()(network.logits), [np.array(found) for found in ids], 400)
    scale = math.log(2) * sum(len(text.encode()) for text in documents)
    bits, without = (sum(nats[:end].sum() for nats in losses) / scale for end in (None, -1))
    ours = next(line for line in verified(models["dense"], models["dense"], texts)[1].splitlines() if "ours" in line)
    assert ours.split() == ["ours", f"{bits:.4f}", f"{without:.4f}", "without", "EOS"]


def test_what_transformers_saves_is_still_the_trained_model(
    models: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    """After fine-tuning with another library, say: its folder can be read, exported and verified here."""
    import transformers

    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        kind.from_pretrained(models["top2"]).save_pretrained(tmp_path / "saved")
    assert verified(tmp_path / "saved", models["top2"], texts)[0]
    assert verified(models["top2"], tmp_path / "saved", texts)[0]


def qwen2_pre_tokenizer(content: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    bytes_alone = content["pre_tokenizer"] | {"use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_alone]}


def doubled_bos(content: dict[str, Any]) -> None:
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = single[:1] + single


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (qwen2_pre_tokenizer, "the pre-tokenizer differs at token "),
        (lambda content: content.update(post_processor=None), "BOS is missing"),
        (doubled_bos, "BOS is doubled"),
    ],
)
def test_an_error_in_the_tokenizer_is_named(
    models: dict[str, Path],
    copied: Copied,
    texts: Path,
    edit_json: EditJson,
    change: Callable[[dict[str, Any]], object],
    reason: str,
) -> None:
    folder = copied("top2")
    edit_json(folder / "tokenizer.json", change)
    assert_named(models["top2"], folder, texts, reason)


@pytest.mark.parametrize(
    ("shape", "key", "value", "reason"),
    [
        ("top1", "norm_topk_prob", True, "routing renormalised: norm_topk_prob is true"),
        ("top2", "norm_topk_prob", False, "routing not renormalised"),
        ("top2", "num_experts_per_tok", 1, "1 experts a token instead of 2"),
        ("dense", "tie_word_embeddings", False, "tied weights lost: the output matrix is not the embedding"),
        ("dense", "rope_theta", 10000.0, "wrong rope base: 10000 instead of 1e+06"),
        ("dense", "rms_norm_eps", 1e-3, "rms_norm_eps is 0.001 instead of 1e-06"),
    ],
)
def test_an_error_in_the_configuration_is_named(
    models: dict[str, Path],
    copied: Copied,
    texts: Path,
    edit_json: EditJson,
    shape: str,
    key: str,
    value: Any,
    reason: str,
) -> None:
    folder = copied(shape)
    edit_json(folder / "config.json", lambda content: content.update({key: value}))
    assert_named(models[shape], folder, texts, reason)


def test_other_weights_are_named(models: dict[str, Path], copied: Copied, texts: Path) -> None:
    folder = copied("top2")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.experts.3.up_proj.weight"] *= 1.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_named(models["top2"], folder, texts, "other weights: model.layers.1.mlp.experts.3.up_proj.weight")


def test_weights_that_are_not_there_are_named(models: dict[str, Path], copied: Copied, texts: Path) -> None:
    """transformers draws them at random, with no more than a warning."""
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_named(models["dense"], folder, texts, "no tensor: model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_a_folder_in_half_precision_is_the_trained_model(
    models: dict[str, Path], copied: Copied, texts: Path, dtype: torch.dtype, name: str
) -> None:
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    halves = {key: weight.to(dtype) for key, weight in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    same, printed = verified(models["dense"], folder, texts)
    assert same, printed
    assert f"transformers {name}" in printed
    halves["model.layers.1.mlp.up_proj.weight"] *= 1.01
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    assert_named(models["dense"], folder, texts, "other weights: model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("kind", "vocab_size", "reasons"),
    [
        ("Llama", 400, ["its architecture is llama instead of qwen3"]),
        ("Qwen3", 300, ["hidden_size is 32 instead of 64", "it chooses among 300 tokens instead of 400"]),
    ],
)
def test_another_network_is_named(
    models: dict[str, Path], copied: Copied, texts: Path, kind: str, vocab_size: int, reasons: list[str]
) -> None:
    import transformers

    folder = copied("dense")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocab_size, **sizes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    for reason in reasons:
        assert_named(models["dense"], folder, texts, reason)


def test_logits_that_differ_for_no_known_reason_are_not_passed(
    models: dict[str, Path], copied: Copied, texts: Path, edit_json: EditJson
) -> None:
    folder = copied("dense")
    edit_json(folder / "config.json", lambda content: content.update(hidden_act="gelu"))
    assert_named(models["dense"], folder, texts, "the logits differ by ")


# --- GGUF files: what they say and hold -------------------------------------------------------------------------------


def faults(path: Path, reference: Path) -> list[str]:
    network, _ = open_own(reference)
    file = exporting.gguf_file.read_gguf(gguf, path)
    return exporting.verification.structure.file_faults(file, network.config, network.state_dict())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", ["dense", "top1", "top2"])
def test_a_file_without_error_has_no_fault(models: dict[str, Path], tmp_path: Path, shape: str, kind: str) -> None:
    write_gguf(models[shape], tmp_path / "m.gguf", kind, "m")
    assert faults(tmp_path / "m.gguf", models[shape]) == []


def test_a_wrong_rope_base_is_named(
    models: dict[str, Path], copied: Copied, tmp_path: Path, edit_json: EditJson
) -> None:
    folder = copied("top2")
    edit_json(folder / "config.json", lambda content: content["bufudu"].update(rope_theta=10000.0))
    write_gguf(folder, tmp_path / "m.gguf", "q8_0", "m")
    assert faults(tmp_path / "m.gguf", models["top2"]) == ["wrong rope base: 10000 instead of 1e+06"]


def as_qwen3moe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write one expert a token as a converter does that takes the network's name for what it computes."""
    for module in (exporting.gguf_file, exporting.gguf_tensors):
        monkeypatch.setattr(module, "architecture", lambda config: "qwen3moe")


def test_one_expert_a_token_in_qwen3moe_is_named(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        as_qwen3moe(patch)
        write_gguf(models["top1"], tmp_path / "m.gguf", "f16", "m")
    [fault] = faults(tmp_path / "m.gguf", models["top1"])
    assert fault.startswith("routing renormalised: qwen3moe weighs the one expert")


def test_an_output_matrix_of_its_own_is_named(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.gguf_file.gguf_tensors

    def untied(*args: Any) -> list[Any]:
        tensors = real(*args)
        embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
        return [*tensors, replace(embedding, name="output.weight", data=embedding.data[::-1].copy())]

    monkeypatch.setattr(exporting.gguf_file, "gguf_tensors", untied)
    write_gguf(models["top2"], tmp_path / "m.gguf", "f16", "m")
    assert faults(tmp_path / "m.gguf", models["top2"]) == ["tied weights lost: the output matrix is not the embedding"]


def test_the_weights_of_another_model_are_named(models: dict[str, Path], tmp_path: Path, copied: Copied) -> None:
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    weights["model.layers.0.self_attn.q_proj.weight"].normal_(0.0, 0.3, generator=generator)
    save_file(weights, folder / "model.safetensors")
    write_gguf(folder, tmp_path / "m.gguf", "q4_0", "m")
    assert faults(tmp_path / "m.gguf", models["dense"]) == ["other weights: blk.0.attn_q.weight"]


# --- llama.cpp itself, where it is installed --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["dense", "top1", "top2", "top3"])
def test_the_file_is_the_trained_model_in_llama_cpp(
    models: dict[str, Path], texts: Path, tmp_path: Path, shape: str
) -> None:
    """One expert a token included: with a renormalised weight the logits would differ by 40 % of their spread."""
    pytest.importorskip("llama_cpp")
    write_gguf(models[shape], tmp_path / "m.gguf", "f16", "m")
    same, printed = verified(models[shape], tmp_path / "m.gguf", texts)
    assert same, printed
    assert "llama.cpp f16           100.0%" in printed


@pytest.mark.parametrize("fault", ["wrong regex", "lost BOS", "top-1", "wrong rope base"])
def test_an_error_is_named_in_llama_cpp(
    models: dict[str, Path],
    texts: Path,
    tmp_path: Path,
    copied: Copied,
    edit_json: EditJson,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llama_cpp")
    shape, folder = "top1" if fault == "top-1" else "top2", models["top1" if fault == "top-1" else "top2"]
    with monkeypatch.context() as patch:
        if fault == "wrong regex":
            patch.setattr(exporting.gguf_file, "llama_cpp_name", lambda *_: "qwen2")
            reason = "the pre-tokenizer differs at token "
        elif fault == "lost BOS":
            real = gguf.GGUFWriter.add_add_bos_token
            patch.setattr(gguf.GGUFWriter, "add_add_bos_token", lambda self, _: real(self, False))
            reason = "BOS is missing"
        elif fault == "top-1":
            as_qwen3moe(patch)
            reason = "routing renormalised"
        else:
            folder = copied(shape)
            edit_json(folder / "config.json", lambda content: content["bufudu"].update(rope_theta=10000.0))
            reason = "wrong rope base"
        write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    assert_named(models[shape], tmp_path / "m.gguf", texts, reason)


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "smollm"])
def test_foreign_tokenizers_make_the_same_ids_in_llama_cpp(
    models: dict[str, Path], texts: Path, tmp_path: Path, copied: Copied, edit_json: EditJson, name: str
) -> None:
    pytest.importorskip("llama_cpp")
    steps = next(steps for steps, known in KNOWN.items() if known == name)

    def change(content: dict[str, Any]) -> None:
        made = {
            "Split": lambda v: {"type": "Split", "pattern": {"Regex": v}, "behavior": "Isolated", "invert": False},
            "Digits": lambda v: {"type": "Digits", "individual_digits": v},
            "ByteLevel": lambda v: content["pre_tokenizer"] | {"use_regex": v},
        }
        pre_tokenizers = [made[kind](value) for kind, value in steps]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre_tokenizers}
        content["model"]["ignore_merges"] = name == "llama-bpe"

    folder = copied("dense")
    edit_json(folder / "tokenizer.json", change)
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    same, printed = verified(folder, tmp_path / "m.gguf", texts)
    assert same, printed


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_named(models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.gguf does not exist: give --verify folders of models and GGUF files"):
        verified(models["dense"], tmp_path / "none.gguf", texts)
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        verified(models["dense"], tmp_path, texts)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"model\.safetensors: is a Git LFS pointer"):
        verified(models["dense"], tmp_path, texts)
    (tmp_path / "text.gguf").write_text("no GGUF")
    with pytest.raises(UserError, match=r"text\.gguf is no GGUF file, damaged or cut short"):
        verified(models["dense"], tmp_path / "text.gguf", texts)
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(UserError, match="has no text that could be read"):
        verified(models["dense"], models["dense"], tmp_path / "empty.jsonl")

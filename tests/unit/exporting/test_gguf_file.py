"""GGUF files: what stands in them, and what happens where none can be written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from common.chat_template import read_chat_template
from common.errors import UserError
from corpus.tokenizer import load_tokenizer
from exporting.gguf_file import read_gguf, write_gguf
from exporting.hugging_face import complete
from exporting.quantization import TYPES

gguf = pytest.importorskip("gguf")


def read(path: Path) -> Any:
    return read_gguf(gguf, path)


def value(file: Any, key: str) -> Any:
    return file.get_field(key).contents()


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_holds_the_weights(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    line, _ = write_gguf(models["dense"], tmp_path / "m.gguf", kind, "m")
    tensors = {tensor.name: tensor for tensor in read(tmp_path / "m.gguf").tensors}
    assert f" in {kind}, {len(tensors)} tensors, read back" in line
    weights = load_file(models["dense"] / "model.safetensors")
    for ours, theirs in (("layers.1.mlp.down_proj", "blk.1.ffn_down"), ("embed_tokens", "token_embd")):
        tensor = tensors[f"{theirs}.weight"]
        assert gguf.GGMLQuantizationType(tensor.tensor_type).name == kind.upper()
        found, expected = (
            gguf.quants.dequantize(tensor.data, tensor.tensor_type),
            weights[f"model.{ours}.weight"].numpy(),
        )
        bits = {"f32": 24, "f16": 11, "bf16": 8}.get(kind) or int(kind[1])
        assert np.abs(found - expected).max() <= np.abs(expected).max() * 2.0 ** (1 - bits)
    norm = tensors["blk.0.attn_norm.weight"]
    assert np.array_equal(norm.data, weights["model.layers.0.input_layernorm.weight"].numpy())


@pytest.mark.parametrize(("shape", "arch"), [("dense", "qwen3"), ("top2", "qwen3moe"), ("top1", "glm4moe")])
def test_the_network_is_described(models: dict[str, Path], tmp_path: Path, shape: str, arch: str) -> None:
    notes = write_gguf(models[shape], tmp_path / "m.gguf", "f16", "the name")[2:]
    file = read(tmp_path / "m.gguf")
    assert value(file, "general.architecture") == arch
    assert value(file, "general.name") == "the name"
    assert value(file, f"{arch}.rope.freq_base") == 1e6
    assert value(file, f"{arch}.attention.head_count_kv") == 2
    assert [note.partition(":")[0] for note in notes] == (["  one expert a token"] if shape == "top1" else [])
    if shape == "top1":
        zeros = [tensor for tensor in file.tensors if "shexp" in tensor.name or "exp_probs" in tensor.name]
        assert len(zeros) == 2 * 4
        assert not any(np.any(tensor.data) for tensor in zeros)
        assert value(file, "glm4moe.expert_weights_norm") is False


def test_the_experts_of_a_layer_are_one_tensor(models: dict[str, Path], tmp_path: Path) -> None:
    write_gguf(models["top2"], tmp_path / "m.gguf", "f32", "m")
    tensors = {tensor.name: tensor.data for tensor in read(tmp_path / "m.gguf").tensors}
    weights = load_file(models["top2"] / "model.safetensors")
    for expert in range(4):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        assert np.array_equal(tensors["blk.1.ffn_up_exps.weight"][expert], weights[name].numpy())
    assert tensors["blk.1.ffn_gate_inp.weight"].dtype == np.float32


def test_the_vocabulary_is_that_of_training(models: dict[str, Path], tmp_path: Path) -> None:
    folder = models["top2"]
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    file, tokenizer = read(tmp_path / "m.gguf"), load_tokenizer(folder / "tokenizer.json")
    tokens = value(file, "tokenizer.ggml.tokens")
    size = tokenizer.get_vocab_size()
    assert tokens[:size] == [tokenizer.id_to_token(i) for i in range(size)]
    assert len(tokens) == 400  # as many as the model has rows
    types = value(file, "tokenizer.ggml.token_type")
    assert types == [3] * 3 + [1] * (size - 3) + [5] * (400 - size)
    assert value(file, "tokenizer.ggml.pre") == "gpt-2"
    assert value(file, "tokenizer.ggml.add_bos_token") is True
    assert value(file, "tokenizer.ggml.add_eos_token") is False
    ids = [value(file, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")]
    assert ids == [1, 2, 0]
    assert value(file, "tokenizer.chat_template") == read_chat_template(folder)


def test_a_width_that_does_not_fit_stays_f16_and_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    from model import CausalLM, load_model, save_model

    model = load_model(models["dense"])
    config = type(model.config)(**{**vars(model.config), "intermediate_size": 80})
    save_model(tmp_path / "odd", config, CausalLM(config).state_dict())
    (tmp_path / "odd" / "tokenizer.json").write_bytes((models["dense"] / "tokenizer.json").read_bytes())
    notes = write_gguf(tmp_path / "odd", tmp_path / "m.gguf", "q8_0", "m")[2:]
    assert notes == ["  matrices with intermediate_size 80 stay F16: q8_0 needs rows of a multiple of 32"]
    kinds = {
        tensor.name: gguf.GGMLQuantizationType(tensor.tensor_type).name for tensor in read(tmp_path / "m.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_a_modelfile_lies_beside(models: dict[str, Path], tmp_path: Path) -> None:
    write_gguf(models["top2"], tmp_path / "m.gguf", "f16", "m")
    lines = (tmp_path / "m.Modelfile").read_text(encoding="utf-8").splitlines()
    assert "FROM ./m.gguf" in lines
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER repeat_penalty 1.2" in lines  # generate.py's, where no diagnosis chose others
    template = "\n".join(lines).partition('TEMPLATE """')[2].partition('"""')[0]
    # Ollama puts the first BOS in front by itself
    assert template.startswith("{{- range $i, $_ := .Messages }}{{ if $i }}<|im_start|>{{ end }}{{ .Role }}\n")
    assert template.endswith("<|im_end|>\n{{ end }}<|im_start|>assistant\n")


def test_a_model_that_was_taught_to_answer_is_not_penalised_for_its_questions_words(
    copied: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    copied("top2").rename(run / "model")
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "val", "loss": 1.0, "answer_tokens": 3.2}\n')
    write_gguf(run / "model", tmp_path / "m.gguf", "f16", "m")
    text = (tmp_path / "m.Modelfile").read_text(encoding="utf-8")
    assert "PARAMETER repeat_penalty 1\n" in text
    assert "continues text" not in text
    (run / "metrics.jsonl").write_text("")
    write_gguf(run / "model", tmp_path / "n.gguf", "f16", "m")
    assert "PARAMETER repeat_penalty 1.2\n" in (tmp_path / "n.Modelfile").read_text(encoding="utf-8")


def test_the_sampling_of_the_folder_is_taken(copied: Any, edit_json: Any, tmp_path: Path) -> None:
    folder = copied("top2")
    edit_json(folder / "generation_config.json", lambda found: found.update(temperature=0.7, top_p=0.9))
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    text = (tmp_path / "m.Modelfile").read_text(encoding="utf-8")
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9\n" in text
    assert "repeat_penalty" not in text


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(folder: Path, target: Path, match: str, kind: str = "f16") -> None:
    before = {path: path.read_bytes() for path in target.parent.glob("*") if path.is_file()}
    with pytest.raises(UserError, match=match) as error:
        write_gguf(folder, target, kind, "m")
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in target.parent.glob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["m.gguf", "m.Modelfile"])
def test_a_file_that_exists_is_not_overwritten(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(models["dense"], tmp_path / "m.gguf", f"{name} exists: delete it, or give --gguf another name")


def test_a_name_that_the_modelfile_would_take(models: dict[str, Path], tmp_path: Path) -> None:
    refused(models["dense"], tmp_path / "m.Modelfile", "give a name that ends in .gguf")


def test_a_folder_that_is_not_there(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        write_gguf(models["dense"], tmp_path / "none" / "m.gguf", "f16", "m")


@pytest.mark.parametrize(
    ("missing", "instead", "sentence"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing: copy it there"),
        ("config.json", None, "config.json is missing"),
        ("model.safetensors", None, "model.safetensors is missing: give the folder of a run"),
        ("model.safetensors", "model.safetensors.index.json", "it lists no safetensors files"),
        ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin is never read, since it may hold code"),
    ],
)
def test_a_folder_without_what_is_needed(
    copied: Any, tmp_path: Path, missing: str, instead: str | None, sentence: str
) -> None:
    folder = copied("dense")
    (folder / missing).unlink()
    if instead:
        (folder / instead).write_text("{}")
    refused(folder, tmp_path / "m.gguf", sentence)


def test_an_unknown_architecture(copied: Any, tmp_path: Path) -> None:
    folder = copied("dense")
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    refused(folder, tmp_path / "m.gguf", "config.json was not written by this project")


def test_an_architecture_that_is_not_the_trained_one(copied: Any, edit_json: Any, tmp_path: Path) -> None:
    folder = copied("dense")
    edit_json(folder / "config.json", lambda content: content.update(model_type="llama"))
    refused(folder, tmp_path / "m.gguf", "model_type is 'llama' instead of qwen3; restore it from a copy")
    with pytest.raises(UserError, match="model_type is 'llama' instead of qwen3"):
        complete(folder)


def test_weights_in_fp16_are_taken(copied: Any, tmp_path: Path) -> None:
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, folder / "model.safetensors")
    write_gguf(folder, tmp_path / "m.gguf", "f16", "m")
    embedding = next(t for t in read(tmp_path / "m.gguf").tensors if t.name == "token_embd.weight")
    assert np.array_equal(embedding.data, weights["model.embed_tokens.weight"].half().numpy())


def test_a_weight_beyond_fp16_asks_for_another_type(copied: Any, tmp_path: Path) -> None:
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors")
    refused(folder, tmp_path / "m.gguf", "up_proj.weight has weights beyond the range of fp16: take --type bf16")
    write_gguf(folder, tmp_path / "m.gguf", "bf16", "m")


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(copied: Any, tmp_path: Path, kind: str, value: float) -> None:
    folder = copied("dense")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors")
    refused(folder, tmp_path / "m.gguf", "up_proj.weight has weights that are not finite", kind)


def test_a_tokenizer_of_another_size(copied: Any, tmp_path: Path) -> None:
    from corpus.tokenizer import train_tokenizer
    from sample_stories import generate_stories

    folder = copied("dense")
    train_tokenizer(generate_stories(300, seed=3), 500).save(str(folder / "tokenizer.json"))
    refused(folder, tmp_path / "m.gguf", "has 500 entries and the model 400")
    with pytest.raises(UserError, match="has 500 entries and the model 400"):
        complete(folder)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("24576 requested and 24240 written"), "is the disk full[?] 24576 requested and 24240 written"),
    ],
)
def test_a_full_disk_leaves_nothing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, why: str
) -> None:
    """The second error is how NumPy, which writes the tensors, says it."""

    def full(self: object) -> None:
        raise error

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    refused(models["dense"], tmp_path / "m.gguf", rf"could not be written \({why}\): nothing is left of it")


def test_a_file_that_reads_back_otherwise_is_not_kept(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.GGUFWriter.write_tensors_to_file

    def damage(self: Any) -> None:
        write(self)
        self.fout[0].seek(-1, 2)
        self.fout[0].write(b"\x7f")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", damage)
    refused(models["dense"], tmp_path / "m.gguf", "was not read back as it was written")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_named(models: dict[str, Path], tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(models["dense"], path, "f16", "m")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"m.gguf is no GGUF file, damaged or cut short .*: export it again"):
        read(path)

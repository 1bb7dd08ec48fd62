"""A GGUF file, for llama.cpp and what is built on it: Ollama, LM Studio, llama-cpp-python."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.chat_template import chatml, read_chat_template
from common.errors import UserError
from common.files import printable, replace_files
from corpus.tokenizer import load_tokenizer, special_ids, vocab_size
from exporting.gguf_tensors import GGUFTensor, architecture, gguf_tensors
from exporting.libraries import library
from exporting.ollama import modelfile
from exporting.pre_tokenizer import llama_cpp_name
from exporting.quantization import BLOCK, is_blocked, not_divisible
from model import ModelConfig, ModelConfigError, load_model


@dataclass(frozen=True)
class GGUFResult:
    """What was written, and sentences about what a user may not expect."""

    files: tuple[Path, Path]
    bytes: int
    tensors: int
    notes: list[str]


def write_gguf(folder: Path, target: Path, kind: str, name: str) -> GGUFResult:
    """Write the model in `folder` as `target`, and an Ollama Modelfile beside it; `name` is for people.

    Both are read back before they get their names. UserError if one is there already, the disk is full, or the model
    cannot be said in GGUF; nothing is left half written then.
    """
    gguf = library("gguf", "a GGUF file")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    beside = target.with_suffix(".Modelfile")
    _check_targets(target, beside)
    try:
        model = load_model(folder)
    except ModelConfigError as error:
        raise UserError(str(error)) from None
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise UserError(f"{tokenizer_file} is missing: copy it there from the folder of the corpus")
    vocabulary = read_vocabulary(folder, model.config)
    tensors = gguf_tensors(model.config, model.state_dict(), kind)

    def write(path: Path) -> None:
        _write(gguf, path, model.config, vocabulary, tensors, kind, name)
        _check(gguf, path, tensors)

    try:
        ollama = modelfile(target.name, folder, model.config, (vocabulary.bos, vocabulary.eos))
        replace_files({target: write, beside: lambda path: path.write_text(ollama, encoding="utf-8")})
    except OSError as error:
        raise UserError(f"{target} could not be written ({error.strerror or error}): nothing is left of it") from None
    return GGUFResult((target, beside), target.stat().st_size, len(tensors), _notes(model.config, kind))


def _check_targets(*targets: Path) -> None:
    for path in targets:
        if path.exists():
            raise UserError(f"{path} exists: delete it, or give --gguf another name")
    if not targets[0].resolve().parent.is_dir():
        raise UserError(f"--gguf {targets[0]}: there is no folder {targets[0].resolve().parent}: create it first")


def _notes(config: ModelConfig, kind: str) -> list[str]:
    notes = []
    if architecture(config) == "glm4moe":
        notes.append(
            "one expert a token: llama.cpp's qwen3moe would weigh it with 1, so the file uses its glm4moe, with a "
            "shared expert of zeros, which computes the same as the model"
        )
    if is_blocked(kind) and (odd := not_divisible(config, BLOCK)):
        notes.append(f"matrices with {odd} stay F16: {kind} needs rows of a multiple of {BLOCK}")
    return notes


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as GGUF has it. `types` are the library's: 1 normal, 3 control, 4 user defined, 5 unused."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: str
    eos: str
    pad_id: int
    chat_template: str


def read_vocabulary(folder: Path, config: ModelConfig) -> Vocabulary:
    """Return the vocabulary of a model's folder; UserError if llama.cpp would make other ids with it."""
    path = folder / "tokenizer.json"
    tokenizer = load_tokenizer(path)
    if vocab_size(tokenizer) > config.vocab_size:
        raise UserError(
            f"{path} has {vocab_size(tokenizer):,} entries and the model {config.vocab_size:,}: take the tokenizer "
            "that the model was trained with"
        )
    text = tokenizer.to_str()
    pre, content = llama_cpp_name(text, str(path)), json.loads(text)
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    tokens = [by_id.get(index, f"<unused {index}>") for index in range(config.vocab_size)]
    types = [
        5 if index not in by_id else (3 if special[index] else 4) if index in special else 1
        for index in range(config.vocab_size)
    ]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    _, _, pad_id = special_ids(tokenizer)
    bos, eos = tokens[config.bos_token_id], tokens[config.eos_token_id]
    template = read_chat_template(folder) or chatml(bos, eos)
    return Vocabulary(pre, tokens, types, merges, bos, eos, pad_id, template)


def _write(
    gguf: Any,
    path: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    tensors: list[GGUFTensor],
    kind: str,
    name: str,
) -> None:
    writer = gguf.GGUFWriter(path, architecture(config))
    try:
        writer.add_name(name)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        stem = "ALL" if kind == "f32" else "MOSTLY"
        writer.add_file_type(gguf.LlamaFileType[f"{stem}_{kind.upper()}"])
        _add_sizes(gguf, writer, config)
        _add_vocabulary(writer, config, vocabulary)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def sizes(gguf: Any, config: ModelConfig) -> dict[str, int | float | bool]:
    """Return what a file says of its network, by the keys of GGUF without the architecture in front."""
    found: dict[str, int | float | bool] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_size,
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
    }
    if config.use_moe:
        found |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if architecture(config) == "glm4moe":
        found |= {
            "leading_dense_block_count": 0,
            "expert_shared_count": 1,
            "expert_weights_norm": False,
            "expert_weights_scale": 1.0,
            "expert_gating_func": int(gguf.ExpertGatingFuncType.SOFTMAX),
        }
    return found


def _add_sizes(gguf: Any, writer: Any, config: ModelConfig) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in sizes(gguf, config).items():
        add[type(value)](f"{architecture(config)}.{key}", value)


def _add_vocabulary(writer: Any, config: ModelConfig, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # any byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(True)  # as every document was trained
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


def _check(gguf: Any, path: Path, tensors: list[GGUFTensor]) -> None:
    """Raise OSError unless the file holds every tensor, byte for byte."""
    found = {tensor.name: tensor.data for tensor in read_gguf(gguf, path).tensors}
    for tensor in tensors:
        data = found.get(tensor.name)
        if data is None or not np.array_equal(data.reshape(-1).view(np.uint8), tensor.data.reshape(-1).view(np.uint8)):
            raise OSError(None, f"{tensor.name} was not read back as it was written")


def read_gguf(gguf: Any, path: Path) -> Any:
    """Return the library's reader of a file; UserError if it is no GGUF file or cut short."""
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a GGUF file") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} is no GGUF file, damaged or cut short ({printable(error, 100)}): export it again"
        ) from None

"""A GGUF file, for llama.cpp and what is built on it: Ollama, LM Studio, llama-cpp-python."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from common.chat_template import chatml, read_chat_template
from common.command_line import check_output_file
from common.errors import UserError
from common.files import printable, replace_files
from corpus.tokenizer import special_ids
from evaluation.opened_model import open_own
from evaluation.run_record import read_run, run_of
from exporting.gguf_tensors import GGUFTensor, architecture, gguf_tensors
from exporting.libraries import library
from exporting.ollama import modelfile
from exporting.pre_tokenizer import llama_cpp_name
from exporting.quantization import BLOCK, is_blocked, not_divisible
from model import ModelConfig

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


def write_gguf(folder: Path, target: Path, kind: str, name: str) -> list[str]:
    """Write the model in `folder` as `target`, and an Ollama Modelfile beside it; `name` is for people.

    Return lines about what was written and what a user may not expect. Both files are read back before they get their
    names. UserError if one is there already, the disk is full, or the model cannot be said in GGUF; nothing is left
    half written then.
    """
    gguf = library("gguf", "a GGUF file")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    beside = target.with_suffix(".Modelfile")
    if target == beside:
        raise UserError(f"--gguf {target} is what the Modelfile is called: give a name that ends in .gguf")
    for path in (target, beside):
        if path.exists():
            raise UserError(f"{path} exists: delete it, or give --gguf another name")
    check_output_file("--gguf", target)
    network, tokenizer = open_own(folder)
    config = network.config
    pre = llama_cpp_name(tokenizer.to_str(), str(folder / "tokenizer.json"))
    bos, eos = (str(tokenizer.id_to_token(index)) for index in (config.bos_token_id, config.eos_token_id))
    template = read_chat_template(folder) or chatml(bos, eos)
    tensors = gguf_tensors(config, network.state_dict(), kind)

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, architecture(config))
        try:
            writer.add_name(name)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"])
            _add_sizes(gguf, writer, config)
            _add_vocabulary(writer, config, tokenizer, pre, template)
            for tensor in tensors:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        _check(gguf, path, tensors)

    try:
        ollama = modelfile(target.name, folder, config, (bos, eos), _was_taught_to_answer(folder))
        replace_files({target: write, beside: lambda path: path.write_text(ollama, encoding="utf-8")})
    except OSError as error:
        why = error.strerror or f"is the disk full? {error}"  # NumPy says how many bytes it got rid of, not why
        raise UserError(f"{target} could not be written ({why}): nothing is left of it") from None
    lines = [
        f"{target}: {target.stat().st_size / 1e6:,.1f} MB in {kind}, {len(tensors):,} tensors, read back",
        f"{beside}: ollama create NAME -f {beside}",
    ]
    if architecture(config) == "glm4moe":
        lines.append(
            "  one expert a token: llama.cpp's qwen3moe would weigh it with 1, so the file uses its glm4moe, with a "
            "shared expert of zeros, which computes the same as the model"
        )
    if is_blocked(kind) and (odd := not_divisible(config, BLOCK)):
        lines.append(f"  matrices with {odd} stay F16: {kind} needs rows of a multiple of {BLOCK}")
    return lines


def _was_taught_to_answer(folder: Path) -> bool:
    """Return whether the records of the model's run, if they can be read, say so."""
    with suppress(UserError):
        run = run_of(folder)
        return run is not None and read_run(run).taught_answers
    return False


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


def _add_vocabulary(writer: Any, config: ModelConfig, tokenizer: Tokenizer, pre: str, template: str) -> None:
    """Write a byte-level BPE; `pre` is llama.cpp's name of how it cuts text. Rows without a token get one of no use."""
    content = json.loads(tokenizer.to_str())
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    rows = range(config.vocab_size)
    writer.add_tokenizer_model("gpt2")  # any byte-level BPE
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([by_id.get(index, f"<unused {index}>") for index in rows])
    writer.add_token_types([added.get(index, NORMAL) if index in by_id else UNUSED for index in rows])
    merges = content["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(special_ids(tokenizer)[2])
    writer.add_add_bos_token(True)  # as every document was trained
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


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

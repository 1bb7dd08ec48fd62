"""A model's folder opened with its tokenizer: by this project, or by Hugging Face's transformers."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from common.errors import UserError
from common.files import LFS_HINT, is_lfs_pointer, printable, read_object
from corpus.tokenizer import load_tokenizer, vocab_size
from model import CausalLM, ModelConfigError, load_model

# A tokenizer without a vocabulary turns this into one unknown token, or nothing.
TOKENIZER_CHECK = "A parrot, 一只鹦鹉。"


def open_own(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[CausalLM, Tokenizer]:
    """Return the network and the tokenizer of a folder that this project saved.

    UserError if one of them cannot be read, or they do not belong together.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: copy it there from the folder of the corpus")
    tokenizer = load_tokenizer(path)
    try:
        network = load_model(folder, device=device, dtype=dtype)
    except ModelConfigError as error:
        raise UserError(str(error)) from None
    if (entries := vocab_size(tokenizer)) > (rows := network.config.vocab_size):
        raise UserError(
            f"{path} has {entries:,} entries and the model {rows:,}: take the tokenizer that the model was trained with"
        )
    return network, tokenizer


def open_with_transformers(folder: Path) -> tuple[Any, Any, list[str]]:
    """Return (model in fp32, tokenizer, names of weights that are not there), or UserError with one sentence.

    Neither the network nor code from the folder is used.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder} needs transformers, which is not installed: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = read_object(folder / "config.json")
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"{folder}: the model needs code of its own, which is never executed here: give a model that transformers "
            "knows"
        )
    if pointer := _lfs_pointer(folder):
        raise UserError(f"{pointer}: {LFS_HINT}")
    local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # whatever the many tokenizer classes raise
        raise UserError(
            f"{folder}: the tokenizer cannot be loaded ({_in_a_line(error)}): copy its files into the folder"
        ) from None
    if len(set(tokenizer(TOKENIZER_CHECK, add_special_tokens=False)["input_ids"])) < 2:
        raise UserError(
            f"{folder}: the tokenizer has no vocabulary: copy its files (tokenizer.json and the like) into the folder"
        )
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **local
        )
    except Exception as error:
        raise UserError(
            f"{folder}: transformers cannot load it as a causal language model ({_in_a_line(error)}): check that "
            "config.json and the weights belong together"
        ) from None
    network, loading = loaded
    return network.eval(), tokenizer, sorted(loading["missing_keys"])


def _lfs_pointer(folder: Path) -> Path | None:
    """Return a weights file of the folder that only stands for one."""
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError):
            if is_lfs_pointer(path):
                return path
    return None


def _in_a_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__

"""A model folder, loaded for writing: the network and its tokenizer, checked against each other."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from common.errors import UserError
from common.uncompiled import leave_compiler_out
from corpus.tokenizer import load_tokenizer, vocab_size
from model import CausalLM, load_model


def load_checkpoint(folder: Path, device: str) -> tuple[CausalLM, Tokenizer]:
    """Read the model folder onto `device`, or onto the best one there is for "auto".

    UserError or ModelConfigError if something is missing or does not fit together.
    """
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise UserError(f"{tokenizer_file} is missing: copy it there from the folder of the training data")
    tokenizer = load_tokenizer(tokenizer_file)
    if device == "cpu":
        leave_compiler_out()
    # half precision is slow on a CPU
    model = load_model(folder, device=device, dtype=torch.float32 if device == "cpu" else None)
    if vocab_size(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{tokenizer_file} has {vocab_size(tokenizer):,} entries and the model {model.config.vocab_size:,}: "
            "take the tokenizer that the model was trained with"
        )
    return model, tokenizer

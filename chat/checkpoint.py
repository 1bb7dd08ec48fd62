"""A model folder, loaded for writing: the network on a device that is there, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from common.errors import UserError
from common.uncompiled import leave_compiler_out
from evaluation.opened_model import open_own
from model import CausalLM


def load_checkpoint(folder: Path, device: str) -> tuple[CausalLM, Tokenizer]:
    """Read the model folder onto `device`, or onto the best one there is for "auto".

    UserError if something is missing or does not fit together.
    """
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    if device == "cpu":
        leave_compiler_out()
    # half precision is slow on a CPU
    return open_own(folder, device, torch.float32 if device == "cpu" else None)

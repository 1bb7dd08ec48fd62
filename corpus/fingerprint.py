"""The name of a preparation by its content: the same bytes and settings give the same corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_regular
from corpus.manifest import FORMAT

DEFAULT_VOCAB_SIZE = 6400
DEFAULT_VAL_FRACTION = 0.005
DEFAULT_MAX_BAD_SHARE = 0.01
DEFAULT_SHARD_TOKENS = 2**26  # 128 MB a shard
DEDUP_CHOICES = ("none", "exact", "near")
REPETITION_CHOICES = ("drop", "keep")

# The settings that change what is written. The number of workers is not among them.
DEFAULTS: dict[str, Any] = {
    "tokenizer": None,
    "vocab_size": DEFAULT_VOCAB_SIZE,
    "dedup": "exact",
    "repetition": "drop",
    "val_fraction": DEFAULT_VAL_FRACTION,
    "val_inputs": (),
    "max_bad_share": DEFAULT_MAX_BAD_SHARE,
    "shard_tokens": DEFAULT_SHARD_TOKENS,
}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def fingerprint(inputs: Iterable[Path], **settings: Any) -> str:
    """SHA-256 over the content of the inputs, in their order, and the settings of `prepare` that change the result.

    Settings left out count as their defaults; files count by content, so that a moved file keeps its fingerprint.
    UserError if a file cannot be read.
    """
    unknown = set(settings) - set(DEFAULTS)
    if unknown:
        raise TypeError(f"fingerprint() got unknown settings: {', '.join(sorted(unknown))}")
    merged = normalise({**DEFAULTS, **settings})
    content = {
        **merged,
        "format": FORMAT,
        "inputs": [sha256_file(path) for path in inputs],
        "tokenizer": merged["tokenizer"] and sha256_file(merged["tokenizer"]),
        "val_inputs": [sha256_file(path) for path in merged["val_inputs"]],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def normalise(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same made the same: a given file takes precedence over the number it makes idle."""
    result = dict(settings)
    if result["tokenizer"] is not None:
        result["vocab_size"] = None
    if result["val_inputs"]:
        result["val_fraction"] = 0.0
    return result

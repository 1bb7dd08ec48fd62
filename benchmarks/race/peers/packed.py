"""What peers that read a stream of tokens have in common: a tokenizer, and the documents as one array of ids."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.race.heldout import read_texts
from corpus.tokenizer import special_ids, train_tokenizer

VOCABULARY = 6400


def tokenizer_for(texts: Iterable[str], given: Path | None, folder: Path) -> tuple[Path, int, int, int]:
    """(file, entries, begin id, end id) of the one given, or of one trained on the texts."""
    path = given or folder / "tokenizer.json"
    if given is None:
        train_tokenizer(iter(texts), VOCABULARY).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    bos_id, eos_id, _ = special_ids(tokenizer)
    return path, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1, bos_id, eos_id


def stream(documents: Path, tokenizer: Path, bos_id: int, eos_id: int) -> np.ndarray:
    """Begin mark, document, end mark, and so on, without gaps; uint16."""
    coded = Tokenizer.from_file(str(tokenizer)).encode_batch(read_texts(documents), add_special_tokens=False)
    return np.concatenate([np.array([bos_id, *one.ids, eos_id], dtype=np.uint16) for one in coded])


def feed_forward_width(width: int) -> int:
    """Of a SwiGLU layer with about 3.1 times the hidden size, in multiples of 64; two experts halve it."""
    return math.ceil(width * math.pi / 64) * 64

"""Documents of a chunk to token ids: what the workers do in the second pass."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from corpus.cleaning.language import FORMS, SCRIPTS, count_scripts, languages
from corpus.reader import Chunk, parse_chunk
from corpus.split import TRAIN, VAL
from corpus.tokenizer import library_errors, load_tokenizer, special_ids, without_special_tokens

ID_TYPE = np.dtype("<u2")
LENGTH_TYPE = np.dtype("<u4")
# Documents: the library keeps some 100 bytes a token, and a small batch gets those of the last one, still in the cache.
ENCODED_AT_ONCE = 32
SPLIT_NAMES = {TRAIN: "train", VAL: "val"}


@dataclass(frozen=True)
class Packed:
    """The documents that a chunk gives to one split: their ids (of ID_TYPE) and their sizes together."""

    ids: bytes
    documents: int
    bytes: int
    characters: int


@dataclass
class TextFigures:
    """What the report says of texts: tokens of each document (of LENGTH_TYPE), characters by script, languages."""

    lengths: bytearray = field(default_factory=bytearray)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, other: TextFigures) -> None:
        """Take in the figures of other texts."""
        self.lengths += other.lengths
        self.scripts += other.scripts
        self.languages += other.languages


def pack_chunk(
    tokenizer_path: Path, tokenizer_sha256: str, chunk: Chunk, assignment: bytes
) -> tuple[dict[str, Packed], TextFigures]:
    """Parse and encode a chunk, given the split assignment of each of its documents. Runs in a worker."""
    parsed = parse_chunk(chunk)
    if len(parsed.texts) != len(assignment):
        raise UserError(f"{chunk.source.name}: changed while it was read; run again when nothing writes to it")
    tokenizer, bos_id, eos_id = _loaded(tokenizer_path, tokenizer_sha256)
    packed, figures = {}, TextFigures()
    for side, name in SPLIT_NAMES.items():
        chosen = [i for i, assigned in enumerate(assignment) if assigned == side]
        texts = [parsed.texts[i] for i in chosen]
        ids, lengths = encode_documents(tokenizer, texts, bos_id, eos_id)
        size = sum(len(parsed.encoded[i]) for i in chosen)
        packed[name] = Packed(ids.tobytes(), len(texts), size, sum(map(len, texts)))
        counts = count_scripts([without_special_tokens(text) for text in texts])
        scripts = dict(zip((*SCRIPTS, *FORMS), counts.sum(axis=0).tolist(), strict=True))
        figures.add(TextFigures(bytearray(lengths.tobytes()), Counter(scripts), languages(counts)))
    return packed, figures


@lru_cache(maxsize=1)
def _loaded(path: Path, sha256: str) -> tuple[Tokenizer, int, int]:
    """Return the tokenizer with its BOS and EOS; `sha256` is there since a path can get another content."""
    tokenizer = load_tokenizer(path)
    bos_id, eos_id, _ = special_ids(tokenizer)
    return tokenizer, bos_id, eos_id


def encode_documents(
    tokenizer: Tokenizer, texts: Sequence[str], bos_id: int, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts, each between BOS and EOS, as uint16, and the number of ids of each text.

    A BOS or EOS that a text already has is not doubled.
    """
    # The fast variant leaves out the offsets of every token in the text, which nobody asks for here.
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    # Ids come as lists: to append each to an array takes a third of the time of joining them and converting the whole.
    stream = array("I")
    ends = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        with library_errors("the tokenizer cannot encode the text; take another, or the one that is trained here"):
            encodings = encode(texts[start : start + ENCODED_AT_ONCE], add_special_tokens=False)
        for encoding in encodings:
            ids = encoding.ids
            if not ids or ids[0] != bos_id:
                stream.append(bos_id)
            stream.fromlist(ids)
            if not ids or ids[-1] != eos_id:
                stream.append(eos_id)
            ends.append(len(stream))
    return np.asarray(stream).astype(ID_TYPE), np.diff(ends, prepend=0).astype(LENGTH_TYPE)

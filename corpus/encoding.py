"""Texts to token ids, BOS and EOS around each document, and which texts a tokenizer does not give back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from corpus.tokenizer import is_byte_level, library_errors, normalized

ID_TYPE = np.dtype("<u2")
LENGTH_TYPE = np.dtype("<u4")
MASK_TYPE = np.dtype("u1")
# Texts: the library keeps some 100 bytes a token, and a small batch gets those of the last one, still in the cache.
ENCODED_AT_ONCE = 32


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts, one after the other, as ID_TYPE, and how many each has, as LENGTH_TYPE."""
    # The fast variant leaves out the offsets of every token in the text, which nobody asks for here.
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    # Ids come as lists: to append each to an array takes a third of the time of joining them and converting the whole.
    stream = array("I")
    ends = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        with library_errors("the tokenizer cannot encode the text; take another, or the one that is trained here"):
            encodings = encode(texts[start : start + ENCODED_AT_ONCE], add_special_tokens=False)
        for encoding in encodings:
            stream.fromlist(encoding.ids)
            ends.append(len(stream))
    return np.asarray(stream).astype(ID_TYPE), np.diff(ends, prepend=0).astype(LENGTH_TYPE)


def as_documents(ids: np.ndarray, lengths: np.ndarray, bos_id: int, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Put BOS before and EOS behind each text of `encode_texts`, unless it has them already."""
    ends = np.cumsum(lengths, dtype=np.int64)
    borders = np.stack((ends - lengths, ends), axis=1)
    ids_there = np.append(ids, ID_TYPE.type(0))[borders - (0, 1)]
    missing = (ids_there != (bos_id, eos_id)) | (lengths == 0)[:, None]
    marks = np.broadcast_to(np.array((bos_id, eos_id), ID_TYPE), missing.shape)
    return np.insert(ids, borders[missing], marks[missing]), lengths + missing.sum(axis=1, dtype=LENGTH_TYPE)


class RoundTrip:
    """Tells which texts a tokenizer does not give back as they were."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._sizes = _entry_bytes(tokenizer)

    def changed(self, texts: Sequence[str], ids: np.ndarray, lengths: np.ndarray) -> list[str]:
        """Return the texts that their ids, as `encode_texts` returns them, do not decode to.

        Bytes are counted first, which costs next to nothing; only where they differ, the ids are decoded.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        suspects = range(len(texts))
        if self._sizes is not None:
            upto = np.concatenate(([0], np.cumsum(self._sizes[ids])))
            sizes = np.array([len(text.encode()) for text in texts])
            suspects = np.flatnonzero(upto[ends] - upto[ends - lengths] != sizes).tolist()
        parts = ((texts[i], ids[ends[i] - lengths[i] : ends[i]].tolist()) for i in suspects)
        decode, tokenizer = self.tokenizer.decode, self.tokenizer
        return [text for text, part in parts if decode(part, skip_special_tokens=False) != normalized(tokenizer, text)]


def _entry_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the bytes of text that each entry stands for, int64 (entries,); None if only decoding can tell."""
    if not is_byte_level(tokenizer):
        return None
    sizes = np.zeros(2**16, dtype=np.int64)
    for entry, place in tokenizer.get_vocab(with_added_tokens=False).items():
        sizes[place] = len(entry)
    for place, token in tokenizer.get_added_tokens_decoder().items():
        sizes[place] = len(token.content.encode())
    return sizes

"""The documents of a packed stream of token ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from corpus.shards import TokenStream


def document_ends(ids: np.ndarray, bos_id: int | None, eos_id: int) -> np.ndarray:
    """Return where an EOS ends a document: one inside a chat, which no BOS follows, does not."""
    ends = np.flatnonzero(ids == eos_id)
    if bos_id is None:
        return ends
    return ends[(ends + 1 == len(ids)) | (ids[np.minimum(ends + 1, len(ids) - 1)] == bos_id)]


def documents(
    stream: TokenStream, bos_id: int | None, eos_id: int, most_tokens: int, places: int = 1
) -> Iterator[np.ndarray]:
    """Yield whole documents without EOS from `places` places spread over the stream, `most_tokens` in all."""
    size = min(len(stream), most_tokens)
    places = 1 if size == len(stream) else places
    for place in range(places):
        ids = stream.read(place * len(stream) // places, size // places)
        ends = document_ends(ids, bos_id, eos_id)
        # the first document is cut off at its beginning, unless the stream begins here
        start = 0 if place == 0 else int(ends[0]) + 1 if len(ends) else len(ids)
        for end in ends[ends >= start].tolist():
            yield ids[start:end]
            start = end + 1


def held_out_documents(
    stream: TokenStream, *, bos_id: int | None, eos_id: int, most: int = 2_000_000
) -> list[list[int]]:
    """Return the documents of a stream's first `most` tokens without BOS and EOS; all of it as one without an EOS."""
    if eos_id < 0:
        return [stream.read(0, most).tolist()]
    found = (ids.tolist() for ids in documents(stream, bos_id, eos_id, most))
    return [ids[1:] if bos_id is not None and ids[:1] == [bos_id] else ids for ids in found]

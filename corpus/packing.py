"""Documents to one stream of uint16 ids, and the stream to shards on the disk."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from corpus.cleaning.language import FORMS, SCRIPTS, count_scripts, languages
from corpus.manifest import BYTES_PER_TOKEN, ShardInfo, SplitInfo
from corpus.reader import Chunk, parse_chunk
from corpus.report import TextFigures
from corpus.shards import ID_TYPE
from corpus.split import TRAIN, VAL
from corpus.tokenizer import library_errors, load_tokenizer, special_ids, without_marks

LENGTH_TYPE = np.dtype("<u4")
# Documents: the library keeps some 100 bytes a token, and a small batch gets those of the last one, still in the cache.
ENCODED_AT_ONCE = 32
SPLIT_NAMES = {TRAIN: "train", VAL: "val"}


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer by place and content: the content is part of the key under which a process keeps it loaded."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Packed:
    """The documents that a chunk gives to one split; `lengths` are their tokens, marks included, as uint32."""

    ids: bytes
    lengths: bytes
    documents: int
    bytes: int
    characters: int
    scripts: Counter[str]
    languages: Counter[str]


def pack_chunk(tokenizer_file: TokenizerFile, chunk: Chunk, fates: bytes) -> dict[str, Packed]:
    """Parse and encode a chunk; `fates` says for each of its documents where it goes. Runs in a worker."""
    parsed = parse_chunk(chunk)
    if len(parsed.texts) != len(fates):
        raise UserError(f"{chunk.source}: changed while it was read; run again when nothing writes to it")
    tokenizer, begin_id, end_id = _loaded(tokenizer_file)
    result = {}
    for fate, name in SPLIT_NAMES.items():
        chosen = [i for i, f in enumerate(fates) if f == fate]
        texts = [parsed.texts[i] for i in chosen]
        ids, lengths = encode_documents(tokenizer, texts, begin_id, end_id)
        size = sum(len(parsed.encoded[i]) for i in chosen)
        counts = count_scripts([without_marks(text) for text in texts])
        scripts = Counter(dict(zip((*SCRIPTS, *FORMS), counts.sum(axis=0).tolist(), strict=True)))
        result[name] = Packed(
            ids.tobytes(), lengths.tobytes(), len(texts), size, sum(map(len, texts)), scripts, languages(counts)
        )
    return result


@lru_cache(maxsize=1)
def _loaded(tokenizer_file: TokenizerFile) -> tuple[Tokenizer, int, int]:
    tokenizer = load_tokenizer(tokenizer_file.path)
    begin_id, end_id, _ = special_ids(tokenizer)
    return tokenizer, begin_id, end_id


def encode_documents(
    tokenizer: Tokenizer, texts: Sequence[str], begin_id: int, end_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all texts, each between its marks, as uint16, and the number of ids of each text.

    Marks that a text already wears are not doubled.
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
            if not ids or ids[0] != begin_id:
                stream.append(begin_id)
            stream.fromlist(ids)
            if not ids or ids[-1] != end_id:
                stream.append(end_id)
            ends.append(len(stream))
    return np.asarray(stream).astype(ID_TYPE), np.diff(ends, prepend=0).astype(LENGTH_TYPE)


class SplitWriter:
    """Writes the stream of one split into shards of `shard_tokens` ids, hashing and counting on the way."""

    def __init__(self, folder: Path, name: str, shard_tokens: int) -> None:
        self.folder = folder
        self.name = name
        self.shard_tokens = shard_tokens
        self.frequencies = np.zeros(2**16, dtype=np.int64)
        self.totals: Counter[str] = Counter()
        self.lengths = bytearray()  # LENGTH_TYPE, one a document
        self.scripts: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self._shards: list[ShardInfo] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._room = 0

    def add(self, packed: Packed) -> None:
        """Append the documents of a chunk."""
        ids = np.frombuffer(packed.ids, dtype=ID_TYPE)
        self.frequencies += np.bincount(ids, minlength=2**16)
        self.totals.update(documents=packed.documents, bytes=packed.bytes)
        self.totals.update(characters=packed.characters, tokens=len(ids))
        self.lengths += packed.lengths
        self.scripts += packed.scripts
        self.languages += packed.languages
        rest = memoryview(packed.ids)
        while rest:
            if self._file is None:
                self._start_shard()
            piece = rest[: self._room * BYTES_PER_TOKEN]
            self._file.write(piece)
            self._digest.update(piece)
            self._room -= len(piece) // BYTES_PER_TOKEN
            rest = rest[len(piece) :]
            if self._room == 0:
                self._end_shard()

    def finish(self) -> SplitInfo:
        """Close the last shard and tell what was written."""
        if self._file is not None:
            self._end_shard()
        totals = {key: self.totals[key] for key in ("documents", "bytes", "characters", "tokens")}
        characters_per_token = round(totals["characters"] / totals["tokens"], 4) if totals["tokens"] else 0.0
        return SplitInfo(**totals, characters_per_token=characters_per_token, shards=self._shards)

    def _start_shard(self) -> None:
        path = self.folder / f"{self.name}-{len(self._shards):05}.bin"
        self._file = open(path, "wb")  # noqa: SIM115 (closed when the shard is full)
        self._digest = hashlib.sha256()
        self._room = self.shard_tokens

    def _end_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        name = Path(self._file.name).name
        self._shards.append(ShardInfo(name, self.shard_tokens - self._room, self._digest.hexdigest()))
        self._file = None


def text_figures(writers: Iterable[SplitWriter]) -> TextFigures:
    """What the report tells of the texts of all splits together."""
    scripts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    lengths = bytearray()
    for writer in writers:
        scripts += writer.scripts
        found += writer.languages
        lengths += writer.lengths
    return TextFigures(np.frombuffer(lengths, LENGTH_TYPE), scripts, found)


def entropy_nats(frequencies: np.ndarray) -> float:
    """Entropy of a table of counts, in nats."""
    counts = frequencies[frequencies > 0]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())

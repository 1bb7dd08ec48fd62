"""Prepared folders, opened: a split is one long stream of token ids, memory-mapped over its shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import check_regular, open_regular
from corpus.fingerprint import sha256_file
from corpus.manifest import BYTES_PER_TOKEN, MOST_TOKENIZER_BYTES, TOKENIZER_NAME, Manifest, ShardInfo, SplitInfo
from corpus.ngram_baselines import NGramBaselines

ID_TYPE = np.dtype("<u2")
READ_BYTES = 2**20
AGAIN = "prepare the corpus again"
CHANGED = "changed since it was prepared (SHA-256 differs)"


class TokenStream:
    """The packed ids of one split: begin mark, document, end mark, and so on without gaps."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])

    def __len__(self) -> int:
        """Tokens in the stream."""
        return int(self._starts[-1])

    def num_rows(self, seq_len: int) -> int:
        """Whole rows of `seq_len` + 1 ids; neighbours share one id, so that every id but the first is a target once."""
        return max(0, (len(self) - 1) // seq_len)

    def batch(self, rows: Sequence[int], seq_len: int) -> np.ndarray:
        """Rows by number as int64 (len(rows), seq_len + 1); inputs are [:, :-1], targets [:, 1:].

        IndexError for a row outside 0 .. num_rows(seq_len) - 1.
        """
        count = self.num_rows(seq_len)
        result = np.empty((len(rows), seq_len + 1), dtype=np.int64)
        for i, row in enumerate(rows):
            if not 0 <= row < count:
                raise IndexError(f"row {row} of a stream of {count} rows")
            self._read_into(result[i], int(row) * seq_len)
        return result

    def read(self, start: int, length: int) -> np.ndarray:
        """The ids from `start` on, int64: `length` of them, or fewer where the stream ends."""
        ids = np.empty(max(0, min(length, len(self) - start)), dtype=np.int64)
        self._read_into(ids, start)
        return ids

    def _read_into(self, target: np.ndarray, start: int) -> None:
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(target):
            offset = start + filled - int(self._starts[shard])
            piece = self._shards[shard][offset : offset + len(target) - filled]
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1


class Corpus:
    """An opened prepared folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_path = folder / TOKENIZER_NAME

    @classmethod
    def open(cls, folder: Path, verify: str = "hash") -> Corpus:
        """Open and check a folder made by prepare.py.

        verify="hash" compares the SHA-256 of every shard and of the tokenizer and looks for ids beyond the vocabulary
        (reads all of them), "size" only the sizes of the shards. UserError names the file that is missing, cut short,
        changed, or only a link to a file elsewhere.
        """
        if verify not in ("hash", "size"):
            raise ValueError(f'verify must be "hash" or "size", not {verify!r}')
        folder = Path(folder)
        corpus = cls(folder, Manifest.read(folder))
        for split in corpus.manifest.splits.values():
            for shard in split.shards:
                _check_shard(folder, shard, corpus.manifest.vocab_size, whole=verify == "hash")
        if _check_place(folder, corpus.tokenizer_path) > MOST_TOKENIZER_BYTES:
            raise UserError(f"{corpus.tokenizer_path}: larger than any tokenizer; {AGAIN}")
        if verify == "hash" and sha256_file(corpus.tokenizer_path) != corpus.manifest.tokenizer_sha256:
            raise UserError(f"{corpus.tokenizer_path}: {CHANGED}; {AGAIN}")
        return corpus

    @property
    def ladder(self) -> NGramBaselines | None:
        """What models of no understanding lose on the validation text; None where there is no such text."""
        figures = self.manifest.ladder
        return None if figures is None else NGramBaselines(**figures)

    def split(self, name: str) -> TokenStream:
        """The stream of "train" or "val"; the latter may be empty."""
        return open_stream(self.folder, self.manifest.splits[name])


def open_stream(folder: Path, split: SplitInfo) -> TokenStream:
    """The shards of a split, memory-mapped; UserError if one cannot be."""
    shards = []
    for shard in split.shards:
        try:
            shards.append(np.memmap(folder / shard.file, dtype=ID_TYPE, mode="r"))
        except (OSError, ValueError) as error:  # too many open files, or a file that has changed since it was checked
            raise UserError(f"{folder / shard.file}: cannot be mapped into memory ({error})") from None
    return TokenStream(shards)


def _check_shard(folder: Path, shard: ShardInfo, vocab_size: int, whole: bool) -> None:
    """The size; with `whole` also the hash, and that no id is beyond the vocabulary."""
    path = folder / shard.file
    size, expected = _check_place(folder, path), shard.tokens * BYTES_PER_TOKEN
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes instead of {expected:,}; {AGAIN}")
    if not whole:
        return
    digest, largest = hashlib.sha256(), 0
    try:
        with open_regular(path) as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
                largest = max(largest, int(np.frombuffer(block, ID_TYPE).max()))
    except (OSError, ValueError) as error:  # ValueError: half an id, of a file that is being written
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    if digest.hexdigest() != shard.sha256:
        raise UserError(f"{path}: {CHANGED}; {AGAIN}")
    if largest >= vocab_size:
        raise UserError(
            f"{path}: holds the id {largest:,}, beyond the {vocab_size:,} entries of the vocabulary; {AGAIN}"
        )


def _check_place(folder: Path, path: Path) -> int:
    """The size in bytes of a plain file that is in the folder, and not only a link from there to somewhere else."""
    try:
        size = check_regular(path).st_size
        real = path.resolve(strict=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
    if real.parent != folder.resolve():
        raise UserError(
            f"{path}: is a link that leads out of the folder, to {real}; copy the file itself there "
            "(cp -L), or give the folder that holds it"
        )
    return size

"""The shards of a prepared folder: written once, and opened as one long memory-mapped stream of token ids a split."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import check_regular, sha256_file
from corpus.conversations.figures import AnswerFigures
from corpus.conversations.rows import PackedRows, pack_rows
from corpus.encoding import ID_TYPE, MASK_TYPE
from corpus.manifest import (
    TOKENIZER_NAME,
    AnswerInfo,
    Manifest,
    ShardInfo,
    SplitInfo,
    mask_name,
    shard_name,
)
from corpus.mixture import SourceRows
from corpus.packing import Packed
from corpus.tokenizer import MOST_TOKENIZER_BYTES

NUMBERS_AT_ONCE = 2**19
AGAIN = "prepare the corpus again"
CHANGED = "changed since it was prepared (SHA-256 differs)"


class TokenStream:
    """The packed ids of one split: BOS, document, EOS, BOS, and so on without gaps."""

    pad_id = 0  # its rows are full

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._starts[-1])

    def num_rows(self, seq_len: int) -> int:
        """Return the number of whole rows of `seq_len` + 1 ids.

        Neighbours share one id, so that every id but the first is a target once.
        """
        return max(0, (len(self) - 1) // seq_len)

    def rows_of_parts(self, tokens: Sequence[int], seq_len: int) -> list[int]:
        """Return how many rows begin in each part of the stream; `tokens` are those of the parts, in their order."""
        rows = self.num_rows(seq_len)
        edges = [min(rows, -(-start // seq_len)) for start in itertools.accumulate(tokens, initial=0)]
        return np.diff([*edges[:-1], rows]).tolist()

    def batch(self, rows: Sequence[int], seq_len: int) -> np.ndarray:
        """Return rows by number as int64 (len(rows), seq_len + 1); inputs are [:, :-1], targets [:, 1:].

        IndexError for a row outside 0 .. num_rows(seq_len) - 1.
        """
        return self._laid_out(self, rows, seq_len, self.pad_id)

    def _laid_out(self, stream: TokenStream, rows: Sequence[int], seq_len: int, fill: int) -> np.ndarray:
        """Return what a stream like this one has in the places of rows, filled up with `fill`."""
        count = self.num_rows(seq_len)
        result = np.full((len(rows), seq_len + 1), fill, dtype=np.int64)
        for i, row in enumerate(rows):
            if not 0 <= row < count:
                raise IndexError(f"row {row} of a stream of {count} rows")
            at = 0
            for start, length in self._parts(int(row), seq_len):
                stream._read_into(result[i, at : at + length], start)
                at += length
        return result

    def _parts(self, row: int, seq_len: int) -> list[tuple[int, int]]:
        """Return (start, length) of each part of a row."""
        return [(row * seq_len, seq_len + 1)]

    def counted(self, rows: Sequence[int], seq_len: int) -> np.ndarray | None:
        """Return which targets of these rows count, bool (len(rows), seq_len); None where all do."""
        return None

    def targets(self, rows: Sequence[int], seq_len: int) -> int | None:
        """Return how many targets of these rows count; None where all do."""
        return None

    def read(self, start: int, length: int) -> np.ndarray:
        """Return `length` ids from `start` on as int64, or fewer where the stream ends."""
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


class MaskedStream(TokenStream):
    """The ids of one split of which only some are targets, such as the answers of conversations.

    A row holds whole documents (`corpus.conversations.rows`) and is filled up with padding, which is no target.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        parts: Sequence[int] = (),
    ) -> None:
        """`parts` are the tokens of the sources of a mixture: no row has documents of two."""
        super().__init__(shards)
        self.mask = TokenStream(masks)
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self._edges = list(itertools.accumulate(parts or [len(self)], initial=0))
        self._packed: dict[int, PackedRows] = {}

    def packed(self, seq_len: int) -> PackedRows:
        """Return where the rows of `seq_len` + 1 ids lie; reads the whole stream at the first call."""
        if seq_len not in self._packed:
            ids, mask = self.read(0, len(self)), self.mask.read(0, len(self)).astype(np.uint8)
            marks = {"bos_id": self.bos_id, "eos_id": self.eos_id}
            self._packed[seq_len] = pack_rows(ids, mask, **marks, seq_len=seq_len, edges=self._edges[1:-1])
        return self._packed[seq_len]

    def rows_of_parts(self, tokens: Sequence[int], seq_len: int) -> list[int]:
        """Return the number of rows of each part, as in TokenStream; the parts are those of the stream."""
        packed = self.packed(seq_len)
        return np.histogram(packed.starts[packed.first[:-1]], self._edges)[0].tolist()

    def num_rows(self, seq_len: int) -> int:
        """Return the number of rows of `seq_len` + 1 ids."""
        return len(self.packed(seq_len))

    def counted(self, rows: Sequence[int], seq_len: int) -> np.ndarray:
        """Return which targets of these rows count, bool (len(rows), seq_len)."""
        found = self._laid_out(self.mask, rows, seq_len, 0)
        for i, row in enumerate(rows):
            lengths = [length for _, length in self._parts(row, seq_len)]
            found[i, np.cumsum([0, *lengths[:-1]])] = 0  # the first id of a document follows from nothing
        return found[:, 1:] == 1

    def targets(self, rows: Sequence[int], seq_len: int) -> int:
        """Return how many targets of these rows count."""
        return int(self.packed(seq_len).targets[np.asarray(rows, dtype=np.int64)].sum())

    def _parts(self, row: int, seq_len: int) -> list[tuple[int, int]]:
        return self.packed(seq_len).parts(row)


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
        whole = verify == "hash"
        for split in corpus.manifest.splits.values():
            for number, shard in enumerate(split.shards):
                entries = corpus.manifest.vocab_size
                _check_numbers(folder, shard.file, ID_TYPE, shard.tokens, entries, shard.sha256 if whole else None)
                if split.answers is not None:
                    digest = split.answers.masks[number] if whole else None
                    _check_numbers(folder, mask_name(shard.file), MASK_TYPE, shard.tokens, 2, digest)
        if _check_place(folder, corpus.tokenizer_path) > MOST_TOKENIZER_BYTES:
            raise UserError(f"{corpus.tokenizer_path}: larger than any tokenizer; {AGAIN}")
        if whole and sha256_file(corpus.tokenizer_path) != corpus.manifest.tokenizer_sha256:
            raise UserError(f"{corpus.tokenizer_path}: {CHANGED}; {AGAIN}")
        return corpus

    def split(self, name: str) -> TokenStream:
        """Return the stream of "train" or "val"; the latter may be empty."""
        made = self.manifest
        parts = [source.tokens for source in made.sources or ()] if name == "train" else []
        return open_stream(self.folder, made.splits[name], (made.bos_id, made.eos_id, made.pad_id), parts)

    def source_rows(self, seq_len: int) -> list[SourceRows]:
        """Return the training rows of each source of a mixture, in the order of the shards; none if it is no mixture.

        UserError if a source has no row.
        """
        found, first = [], 0
        sources = self.manifest.sources or []
        counts = self.split("train").rows_of_parts([source.tokens for source in sources], seq_len) if sources else []
        for source, count in zip(sources, counts, strict=True):
            if count < 1:
                few = f"{source.name}: less than a row of {seq_len} tokens to train on"
                raise UserError(f"{few}; give more of it, or none")
            found.append(SourceRows(source.name, first, count, source.weight))
            first += count
        return found


def open_stream(
    folder: Path, split: SplitInfo, special_ids: tuple[int, int, int], parts: Sequence[int] = ()
) -> TokenStream:
    """Map the shards of a split into memory; UserError if one cannot be.

    `special_ids`: BOS, EOS and padding; `parts`: the tokens of the sources of a mixture.
    """
    shards = [_mapped(folder / shard.file, ID_TYPE) for shard in split.shards]
    if split.answers is None:
        return TokenStream(shards)
    masks = [_mapped(folder / mask_name(shard.file), MASK_TYPE) for shard in split.shards]
    bos_id, eos_id, pad_id = special_ids
    return MaskedStream(shards, masks, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, parts=parts)


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    try:
        return np.memmap(path, dtype=kind, mode="r")
    except (OSError, ValueError) as error:  # too many open files, or a file that has changed since it was checked
        raise UserError(f"{path}: cannot be mapped into memory ({error})") from None


def _check_numbers(folder: Path, name: str, kind: np.dtype, count: int, beyond: int, sha256: str | None) -> None:
    """Check that a file of `count` numbers has its size, and with a hash that, and that all are below `beyond`."""
    path, size = folder / name, count * kind.itemsize
    if (found := _check_place(folder, path)) != size:
        raise UserError(f"{path}: {found:,} bytes instead of {size:,}; {AGAIN}")
    if sha256 is None:
        return
    numbers, digest, largest = _mapped(path, kind), hashlib.sha256(), 0
    for start in range(0, count, NUMBERS_AT_ONCE):
        block = numbers[start : start + NUMBERS_AT_ONCE]
        digest.update(block.data)
        largest = max(largest, int(block.max()))
    if digest.hexdigest() != sha256:
        raise UserError(f"{path}: {CHANGED}; {AGAIN}")
    if largest >= beyond:
        raise UserError(f"{path}: holds the id {largest:,}, beyond the {beyond:,} that there are; {AGAIN}")


def _check_place(folder: Path, path: Path) -> int:
    """Return the size of a plain file that is in the folder, and not only a link from there to somewhere else."""
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


class _HashedFile:
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: np.ndarray) -> None:
        """Append an array."""
        self._file.write(data.data)
        self._digest.update(data.data)

    def close(self) -> str:
        """Close the file and return its SHA-256."""
        self._file.close()
        return self._digest.hexdigest()


class SplitWriter:
    """Writes the stream of one split into shards of `shard_tokens` ids, hashing and counting on the way.

    `masked`: every shard gets a mask. `by_source` counts documents, bytes and tokens of each source of a mixture.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, masked: bool = False) -> None:
        self.folder, self.name, self.shard_tokens, self.masked = folder, name, shard_tokens, masked
        self.answers = AnswerFigures()
        self.frequencies = np.zeros(2**16, dtype=np.int64)
        self.by_source: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._characters = 0
        self._shards: list[ShardInfo] = []
        self._masks: list[str] = []
        self._files: list[_HashedFile] = []  # of the open shard: its ids, and its mask if there is one
        self._free = 0  # ids that go into it

    def add(self, packed: Packed, source: int) -> None:
        """Append the documents of a chunk."""
        ids = np.frombuffer(packed.ids, ID_TYPE)
        self.frequencies += np.bincount(ids, minlength=2**16)
        self.by_source[source].update(documents=packed.documents, bytes=packed.bytes, tokens=len(ids))
        self._characters += packed.characters
        self.answers.add(packed.answers)
        streams = [ids, np.frombuffer(packed.mask, MASK_TYPE)] if self.masked else [ids]
        while len(streams[0]):
            if not self._files:
                name = shard_name(self.name, len(self._shards))
                names = (name, mask_name(name)) if self.masked else (name,)
                self._files, self._free = [_HashedFile(self.folder / name) for name in names], self.shard_tokens
            for file, stream in zip(self._files, streams, strict=True):
                file.write(stream[: self._free])
            written = min(self._free, len(streams[0]))
            streams = [stream[written:] for stream in streams]
            self._free -= written
            if not self._free:
                self._end_shard()

    def finish(self) -> SplitInfo:
        """Close the last shard and return what was written."""
        if self._files:
            self._end_shard()
        totals = {key: sum(c[key] for c in self.by_source.values()) for key in ("documents", "bytes", "tokens")}
        figures = {name: getattr(self.answers, name) for name in ("conversations", "turns", "targets", "target_bytes")}
        return SplitInfo(
            **totals,
            characters=self._characters,
            characters_per_token=round(self._characters / max(1, totals["tokens"]), 4),
            shards=self._shards,
            answers=AnswerInfo(**figures, masks=self._masks) if self.masked else None,
        )

    def entropy_nats(self) -> float:
        """Return the entropy of the frequencies of the ids."""
        counts = self.frequencies[self.frequencies > 0]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def _end_shard(self) -> None:
        sha256, *masks = (file.close() for file in self._files)
        name, tokens = shard_name(self.name, len(self._shards)), self.shard_tokens - self._free
        self._shards.append(ShardInfo(file=name, tokens=tokens, sha256=sha256))
        self._masks += masks
        self._files = []

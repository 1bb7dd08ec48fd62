"""Checks of the data as the run will read it, against the files themselves; rank 0 alone does them, without a model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from corpus.shards import ID_TYPE, Corpus
from training import sampler
from training.evaluation.validation import IGNORED
from training.preflight.report import Check, failed, passed, warned

OFFSETS = (0, 1, 2, 3)
ROWS_LOOKED_AT = 64
_WINDOW = 32  # tokens: about 50 characters, more than stock phrases have
_DOUBLINGS = 5  # 2**5 tokens
_SAMPLED = 16  # one window in so many, chosen by its content and so alike in both splits
_CHUNK = 2**20
_MOST_VALIDATION = 2**21
_OVERLAP_WARNS, _OVERLAP_FAILS = 0.05, 0.5


@dataclass(frozen=True)
class RowFigures:
    """Shares of 0 to 1 over the rows that were looked at."""

    matches: dict[int, float]
    """offset -> targets that are the input so many places on; 1 is right."""
    last_match: float
    """Rows whose last target is the token that follows the row in the corpus."""
    padded_inputs: float
    padded_targets: float
    """Targets that are padding and count in the loss."""
    ignored_targets: float
    from_corpus: float
    """Rows that are the corpus' own, token for token."""


class RawTokens:
    """The ids of a split straight from its files, past the code that the run reads them with."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        shards = corpus.manifest.splits[split].shards
        self.parts = [np.memmap(corpus.folder / shard.file, dtype=ID_TYPE, mode="r") for shard in shards]
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` ids from `start`, fewer at the end."""
        pieces = [
            part[max(0, start - first) : max(0, start + count - first)]
            for part, first in zip(self.parts, self.starts[:-1], strict=True)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, ID_TYPE)

    def row(self, row: int, seq_len: int) -> np.ndarray:
        """The `seq_len` + 1 ids of a row, int64."""
        return self.read(row * seq_len, seq_len + 1).astype(np.int64)


def spread(total: int, wanted: int) -> list[int]:
    """Up to `wanted` of 0 .. total - 1, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int)).tolist()


def look_at_rows(corpus: Corpus, seq_len: int, pad_id: int) -> RowFigures:
    """Read rows through `training.sampler.tensors`, as every step does, and compare."""
    stream, raw = corpus.split("train"), RawTokens(corpus, "train")
    rows = spread(stream.num_rows(seq_len), ROWS_LOOKED_AT)
    inputs, targets = (part.numpy() for part in sampler.tensors(stream, rows, seq_len, torch.device("cpu")))
    truth = np.stack([raw.row(row, seq_len) for row in rows])
    counts = (targets != IGNORED) & (targets != pad_id)
    same_shape = inputs.shape == truth[:, :-1].shape
    return RowFigures(
        matches={offset: _match(inputs, targets, counts, offset) for offset in OFFSETS},
        last_match=float((targets[:, -1] == truth[:, -1])[counts[:, -1]].mean()) if counts[:, -1].any() else 1.0,
        padded_inputs=float((inputs == pad_id).mean()),
        padded_targets=float((targets == pad_id).mean()),
        ignored_targets=float((targets == IGNORED).mean()),
        from_corpus=float((inputs == truth[:, :-1]).all(-1).mean()) if same_shape else 0.0,
    )


def _match(inputs: np.ndarray, targets: np.ndarray, counts: np.ndarray, offset: int) -> float:
    length = inputs.shape[1] - offset
    if length < 1:
        return 0.0
    counted = counts[:, :length]
    return float((targets[:, :length] == inputs[:, offset:])[counted].mean()) if counted.any() else 0.0


def judge_padding(found: RowFigures) -> Check:
    """Rows are full, and no padding is predicted."""
    if found.padded_targets:
        return failed(
            "padding",
            f"{found.padded_targets:.1%} of the targets are padding and count in the loss, which looks low for it",
            f"pack documents into full rows, as prepare.py does, or mark those targets with {IGNORED}",
        )
    if found.padded_inputs or found.ignored_targets:
        lost = max(found.padded_inputs, found.ignored_targets)
        return warned(
            "padding",
            f"{lost:.1%} of every row is padding: computed, and not learned from",
            "pack documents into full rows, as prepare.py does",
        )
    return passed("padding", "none: every row is full of text and every target counts")


def judge_row_targets(found: RowFigures) -> Check | None:
    """The part of the targets' check that needs no model; None if nothing is wrong."""
    where = "look at training/sampler.py: targets are the inputs shifted by one, ids[:, 1:]"
    if found.matches[1] < 1:
        best = max(found.matches, key=lambda offset: found.matches[offset])
        if found.matches[best] < 0.9:
            return failed("targets", f"only {found.matches[1]:.1%} of the targets are the token that follows", where)
        meaning = {0: "the input itself: the model sees its answer and learns to copy"}.get(
            best, f"{best} places on: the model learns to leave out {best - 1} of {best} tokens"
        )
        return failed("targets", f"{found.matches[best]:.1%} of the targets are {meaning}", where)
    if found.last_match < 1:
        return failed("targets", f"the last target is wrong in {1 - found.last_match:.1%} of the rows", where)
    if found.from_corpus < 1 and not found.padded_inputs:
        return failed(
            "targets",
            f"{1 - found.from_corpus:.1%} of the rows are not those of the corpus",
            "look at training/sampler.py and at what reads the shards",
        )
    return None


@dataclass(frozen=True)
class Overlap:
    """`share` of the sampled validation windows that stand in the part of the training text that was `read`, 0..1."""

    share: float
    windows: int
    read: float


def find_overlap(corpus: Corpus, seconds: float) -> Overlap | None:
    """Passages of validation text within the training text; None where there is no text to compare.

    Windows of 32 tokens, sampled by their content, so that one that is sampled here is sampled there. Exact for the
    part of the training text that fits into `seconds`, which is spread over the whole of it.
    """
    train, val = RawTokens(corpus, "train"), RawTokens(corpus, "val")
    held_out = [_windows(val.read(start, _CHUNK)) for start in _starts(len(val), _MOST_VALIDATION)]
    known = np.unique(np.concatenate(held_out)) if held_out else np.empty(0, np.uint64)
    if not len(known) or len(train) < _WINDOW:
        return None
    found, read, deadline = np.zeros(len(known), bool), 0, time.monotonic() + seconds
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(starts := list(range(0, len(train), _CHUNK))))
    for place in order:
        ids = train.read(starts[place], _CHUNK + _WINDOW - 1)  # a window may begin in one chunk and end in the next
        found |= np.isin(known, _windows(ids))
        read += min(len(ids), _CHUNK)
        if time.monotonic() > deadline:
            break
    return Overlap(float(found.mean()), len(known), min(1.0, read / len(train)))


def _starts(length: int, most: int) -> Iterator[int]:
    chunks = list(range(0, length, _CHUNK))
    yield from (chunks[i] for i in spread(len(chunks), max(1, most // _CHUNK)))


def _windows(ids: np.ndarray) -> np.ndarray:
    """Hashes of the sampled windows, uint64: a polynomial, doubled in length five times."""
    with np.errstate(over="ignore"):
        value, length = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15), 1
        for step in range(_DOUBLINGS):
            factor = np.uint64(0xBF58476D1CE4E5B9 + 2 * step)
            value = value[: len(value) - length] * factor + value[length:]
            value ^= value >> np.uint64(29)
            length *= 2
    return value[value % np.uint64(_SAMPLED) == 0]


def judge_overlap(found: Overlap | None) -> Check:
    """A validation loss means something only on text that was not trained on."""
    if found is None:
        return warned(
            "overlap",
            "there is too little validation text to compare",
            "prepare with a --val_fraction: without it nobody sees overfitting",
        )
    part = "" if found.read == 1 else f" (in the {found.read:.0%} of it that was read)"
    text = f"{found.share:.1%} of {found.windows:,} validation passages of {_WINDOW} tokens stand in the training text"
    mend = "prepare again with --dedup near, or give validation text of another source"
    if found.share > _OVERLAP_FAILS:
        return failed("overlap", f"{text}{part}: the validation loss would be that of the training text", mend)
    if found.share > _OVERLAP_WARNS:
        return warned("overlap", f"{text}{part}", mend)
    return passed("overlap", f"{text}{part}")

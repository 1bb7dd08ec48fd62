"""The first pass: every document is hashed, scored and assigned to a split before any is tokenized.

It costs a few per cent of the second pass and buys three things: bad input fails early, duplicates are never encoded,
and the tokenizer learns from training documents alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import listed
from corpus.cleaning.near_duplicates import NearIndex, NearPairs, signatures
from corpus.cleaning.normalization import normalized_characters
from corpus.cleaning.repetition import EXAMPLE_CHARACTERS, Repetition, breaks_a_rule, scores
from corpus.formats.detect import TextFile
from corpus.reader import EMPTY_TEXT, REASONS, Chunk, describe, parse_chunk
from corpus.settings import PreparationSettings
from corpus.split import (
    DIGEST_BYTES,
    DUPLICATE,
    IN_VAL,
    NEAR_DUPLICATE,
    REPETITIVE,
    TRAIN,
    VAL,
    HashSubset,
    document_digest,
    val_cut,
)

BAD_LINES_KEPT = 100
BAD_LINES_NAMED = 10
EXACT_EXAMPLES = 3
NEAR_EXAMPLES = 10


@dataclass(frozen=True)
class ScannedChunk:
    """What a worker found in a chunk.

    `candidates` are (digest, text, bytes) for the tokenizer's sample, `scores` those of `repetition.scores`,
    `repetitive` the beginnings of the documents that break a rule, by their place in the chunk, `signatures` those of
    `near_duplicates.signatures`, None unless they are asked for.
    """

    file_bytes: int
    lines: int
    problems: list[tuple[int, str]]
    digests: list[bytes]
    text_bytes: int
    candidates: list[tuple[bytes, str, int]]
    scores: np.ndarray
    repetitive: dict[int, str]
    signatures: np.ndarray | None
    conversations: int = 0


def scan_chunk(chunk: Chunk, settings: PreparationSettings, ceiling: bytes) -> ScannedChunk:
    """Parse, hash and score a chunk; training documents with digests up to `ceiling` come along. Runs in a worker."""
    parsed = parse_chunk(chunk)
    digests = [document_digest(encoded) for encoded in parsed.encoded]
    normalized = normalized_characters(parsed.texts)
    values = scores(parsed.texts, parsed.encoded, normalized)
    repetitive = np.flatnonzero(breaks_a_rule(values)).tolist()
    unwanted = {digests[i] for i in repetitive} if settings.repetition == "drop" else set()
    cut = val_cut(settings.held_out_share)
    candidates = [
        (digest, text, len(encoded))
        for digest, text, encoded in zip(digests, parsed.texts, parsed.encoded, strict=True)
        if cut <= digest <= ceiling and chunk.file.side == "train" and digest not in unwanted
    ]
    return ScannedChunk(
        file_bytes=chunk.file_bytes,
        lines=parsed.lines,
        problems=parsed.problems,
        digests=digests,
        text_bytes=sum(map(len, parsed.encoded)),
        candidates=candidates,
        scores=values,
        repetitive={i: parsed.texts[i][:EXAMPLE_CHARACTERS] for i in repetitive},
        signatures=signatures(normalized) if settings.dedup == "near" else None,
        conversations=len(parsed.conversations),
    )


Key = tuple[int, int]
"""A chunk: the number of its file, those of validation first, and its number in the file."""


class ChunkDocuments(NamedTuple):
    """The documents of a chunk, by their places in `Scan.assignment`; `text_bytes` are those of their texts."""

    places: range
    text_bytes: int
    source: int
    """That of their file."""


class Scan:
    """What the first pass has found so far, and where each document goes.

    What grows with the input: a set of 16-byte digests, about 110 bytes a distinct document (150 MB for 1.4 million),
    and what `NearIndex` states where near duplicates are looked for, both freed by `finish`; the scores of `repetition`
    and `assignment`, which keeps one byte a document: TRAIN, VAL or why it is left out.
    """

    def __init__(self, settings: PreparationSettings) -> None:
        self.settings = settings
        self.sample = HashSubset(settings.sample_bytes)
        self.assignment = bytearray()
        self.chunks: dict[Key, ChunkDocuments] = {}
        self.lines = self.conversations = 0
        self.skipped: Counter[str] = Counter()
        self.bad_lines: list[str] = []
        self.exact_duplicates = self.near_in_val = 0
        self.repetition = Repetition()
        self.examples: list[tuple[int, int, float]] = []
        """Some dropped documents, each as (kept in its stead, dropped, similarity): near ones, then exact."""
        self._seen: set[bytes] = set()
        self._repeated: dict[bytes, int] = {}  # the smallest digests that repeat, each with the place of a document
        self._val_file_digests: set[bytes] = set()
        self._near = NearIndex()
        self._cut = val_cut(settings.held_out_share)
        self._smallest = b"\xff" * DIGEST_BYTES
        self._smallest_places: list[int] = []

    def add(self, key: Key, found: ScannedChunk, file: TextFile) -> None:
        """Take in what a worker found in a chunk of a file, in the order of the chunks: validation files first."""
        from_val_file = file.side == "val"
        self.lines += found.lines
        self.conversations += found.conversations
        for line, reason in found.problems:
            self.skipped[reason] += 1
            if reason != EMPTY_TEXT and len(self.bad_lines) < BAD_LINES_KEPT:
                self.bad_lines.append(f"{file.place(line)}: {describe(reason, file.fields)}")
        start = len(self.assignment)
        self._assign(found, from_val_file)
        places = range(start, len(self.assignment))
        self.chunks[key] = ChunkDocuments(places, found.text_bytes, file.source)
        if found.signatures is not None:
            kept = [i for i, side in enumerate(self.assignment[start:]) if side in (TRAIN, VAL)]
            digests = [found.digests[i] for i in kept]
            places = [start + i for i in kept]
            self._near.add(found.signatures[kept], digests, places, preferred=from_val_file)
        for digest, text, size in found.candidates:
            if digest not in self._val_file_digests:
                self.sample.add(digest, text, size)

    def _assign(self, found: ScannedChunk, from_val_file: bool) -> None:
        """Assign the documents of a chunk; those of validation files stay, however repetitive."""
        scored, drops = [], self.settings.repetition == "drop"
        for i, digest in enumerate(found.digests):
            if from_val_file:
                self._val_file_digests.add(digest)
            if not from_val_file and digest in self._val_file_digests:
                side = IN_VAL
            elif self._is_exact_duplicate(digest):
                side = DUPLICATE
            elif from_val_file:
                side = VAL
            else:
                scored.append(i)
                if i in found.repetitive:
                    self.repetition.add_example(digest, found.scores[i], found.repetitive[i])
                side = REPETITIVE if i in found.repetitive and drops else self._side(digest)
            self.assignment.append(side)
        self.repetition.add(found.scores[scored])

    def _is_exact_duplicate(self, digest: bytes) -> bool:
        """Return whether the next document is to be dropped as one that was there before."""
        if digest in self._seen:
            self.exact_duplicates += 1
            self._repeated.setdefault(digest, len(self.assignment))
            if len(self._repeated) > EXACT_EXAMPLES:
                del self._repeated[max(self._repeated)]
            return self.settings.dedup != "none"
        self._seen.add(digest)
        return False

    def _side(self, digest: bytes) -> int:
        """Return the split of the next document, and remember the smallest digest of train."""
        if digest < self._cut:
            return VAL
        if digest < self._smallest:
            self._smallest, self._smallest_places = digest, []
        if digest == self._smallest:
            self._smallest_places.append(len(self.assignment))
        return TRAIN

    def finish(self, files: Sequence[TextFile]) -> None:
        """Check what was found and drop near duplicates.

        UserError if too many lines are bad, or a side that should hold documents does not; it names the files.
        """
        if self.bad and self.bad == self.lines:
            raise UserError(
                f'none of the {self.lines:,} lines can be used: each should be {{"text": ...}}; the first is '
                f"{self.bad_lines[0]}"
            )
        if self.bad > self.settings.max_bad_share * self.lines:
            raise UserError(
                f"{self.bad:,} of {self.lines:,} lines are bad ({self.bad / self.lines:.2%}), more than "
                f"--max_bad_share {self.settings.max_bad_share:g} allows; fix them, or give prepare.py a higher "
                f"--max_bad_share. The first:{self._first_bad_lines()}"
            )
        val_files = [file.path for file in files if file.side == "val"]
        if not self.assignment or (val_files and VAL not in self.assignment):
            empty = val_files or [file.path for file in files]
            raise UserError(f'no documents in {listed(empty, BAD_LINES_NAMED)}; each line should be {{"text": ...}}')
        self._drop_near()
        # A corpus too small for its fraction still gets one validation document, the same one every time.
        copies = len(self._smallest_places)
        if self.settings.held_out_share and VAL not in self.assignment and self.assignment.count(TRAIN) > copies:
            for place in self._smallest_places:
                self.assignment[place] = VAL
            self.sample.discard([self._smallest])
        if TRAIN not in self.assignment:
            raise UserError(f"--input: no document is left to train on; {self._why_nothing_is_left()}")
        self._seen.clear()
        self._val_file_digests.clear()

    def _drop_near(self) -> None:
        """Drop near duplicates; a validation document is preferred to a training one, so none is near to it after."""
        pairs = self._near.resolve()
        sides = np.frombuffer(self.assignment, dtype=np.uint8)
        self.near_in_val = int(((sides[pairs.dropped] == TRAIN) & (sides[pairs.kept] == VAL)).sum())
        sides[pairs.dropped] = NEAR_DUPLICATE
        self.sample.discard(pairs.digests)
        self.examples = [*_near_examples(pairs), *((p, p, 1.0) for _, p in sorted(self._repeated.items()))]

    def _why_nothing_is_left(self) -> str:
        hint = "add documents, or give fewer to validation (prepare.py --val_fraction, --val_input)"
        left_out = {
            "repeat themselves and would stay with --repetition keep": self.count(REPETITIVE),
            "are near to validation documents and would stay with --dedup exact": self.near_in_val,
            "are in --val_input too": self.count(IN_VAL),
        }
        return "".join([hint, *(f"; {count:,} {why}" for why, count in left_out.items() if count)])

    def count(self, side: int) -> int:
        """Return how many documents are assigned so."""
        return self.assignment.count(side)

    @property
    def bad(self) -> int:
        """The number of bad lines; empty texts are none."""
        return sum(self.skipped[reason] for reason in REASONS)

    def _first_bad_lines(self) -> str:
        return "".join(f"\n  {line}" for line in self.bad_lines[:BAD_LINES_NAMED])

    def duplicates(self, texts: Mapping[int, str]) -> dict[str, Any]:
        """Return the key "duplicates" of the corpus report; `texts` are the beginnings of the examples, by place."""
        return {
            "exact": self.exact_duplicates,
            "near": self.count(NEAR_DUPLICATE),
            "near_in_val": self.near_in_val,
            "examples": [
                {"kept": texts[kept], "dropped": texts[dropped], "similarity": round(similarity, 4)}
                for kept, dropped, similarity in self.examples
            ],
        }

    def bad_line_message(self) -> str:
        """Return how many lines were skipped and the first of them; empty if there are none."""
        if not self.bad:
            return ""
        reasons = ", ".join(
            f"{self.skipped[reason]:,} {describe(reason)}" for reason in REASONS if self.skipped[reason]
        )
        return f"skipped {self.bad:,} of {self.lines:,} lines ({reasons}). The first:{self._first_bad_lines()}"


def _near_examples(near: NearPairs) -> list[tuple[int, int, float]]:
    """Choose pairs evenly among those that were found, and sort them, the least similar first."""
    found = len(near.dropped)
    chosen = np.unique(np.linspace(0, found, NEAR_EXAMPLES, endpoint=False).astype(int))[:found]
    columns = (column[chosen].tolist() for column in (near.kept, near.dropped, near.similarity))
    return sorted(zip(*columns, strict=True), key=lambda pair: pair[2])

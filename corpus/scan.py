"""The first pass: every document is hashed, counted and told where it goes, before any is tokenized.

It costs a few per cent of the second pass and buys three things: bad input fails early, duplicates are never encoded,
and the tokenizer learns from training documents alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from corpus.cleaning.duplicate_examples import Duplicates
from corpus.cleaning.near_duplicates import NearIndex, signatures
from corpus.cleaning.normalization import letters_and_digits
from corpus.cleaning.repetition import EXAMPLE_CHARACTERS, Repetition, breaks_a_rule, scores
from corpus.reader import EMPTY_TEXT, REASONS, Chunk, parse_chunk
from corpus.split import DIGEST_BYTES, DROP, TRAIN, VAL, HashSubset, document_digest, is_val, val_cut

BAD_LINES_KEPT = 100
BAD_LINES_NAMED = 10
_MOST_NAMED = 5  # files


@dataclass(frozen=True)
class Surveying:
    """What a worker needs to know of the settings."""

    cut: bytes
    near: bool
    drops_repetition: bool


@dataclass(frozen=True)
class ChunkSurvey:
    """What a worker tells about a chunk.

    `candidates` are (digest, text, bytes) for the tokenizer's sample, `scores` those of `repeats.scores`,
    `repetitive` the beginnings of the documents that break a rule, by their place in the chunk, `signatures` those of
    `near.signatures`, None unless they are asked for.
    """

    source: str
    from_val_file: bool
    file_bytes: int
    lines: int
    empty: int
    problems: list[tuple[int, str]]
    digests: bytes
    text_bytes: int
    candidates: list[tuple[bytes, str, int]]
    scores: np.ndarray
    repetitive: dict[int, str]
    signatures: np.ndarray | None


def survey_chunk(chunk: Chunk, from_val_file: bool, wanted: Surveying, ceiling: bytes) -> ChunkSurvey:
    """Parse, hash and score a chunk; training documents with digests up to `ceiling` are sent along. Runs in a worker."""
    parsed = parse_chunk(chunk)
    digests = [document_digest(encoded) for encoded in parsed.encoded]
    letters = letters_and_digits(parsed.texts)
    values = scores(parsed.texts, parsed.encoded, letters)
    repetitive = np.flatnonzero(breaks_a_rule(values)).tolist()
    unwanted = {digests[i] for i in repetitive} if wanted.drops_repetition else set()
    candidates = [
        (digest, text, len(encoded))
        for digest, text, encoded in zip(digests, parsed.texts, parsed.encoded, strict=True)
        if digest <= ceiling and not from_val_file and not is_val(digest, wanted.cut) and digest not in unwanted
    ]
    return ChunkSurvey(
        source=chunk.source,
        from_val_file=from_val_file,
        file_bytes=chunk.file_bytes,
        lines=parsed.lines,
        empty=parsed.empty,
        problems=parsed.problems,
        digests=b"".join(digests),
        text_bytes=sum(map(len, parsed.encoded)),
        candidates=candidates,
        scores=values,
        repetitive={i: parsed.texts[i][:EXAMPLE_CHARACTERS] for i in repetitive},
        signatures=signatures(letters) if wanted.near else None,
    )


@dataclass
class Survey:
    """The findings of the first pass.

    What grows with the input: a set of 16-byte digests, about 110 bytes a distinct document (150 MB for 1.4 million),
    and what `near.NearIndex` states where near duplicates are looked for; both are freed by `finish`. `fates` keeps
    one byte a document.
    """

    dedup: str
    repetition: Repetition
    val_fraction: float
    has_val_files: bool
    sample: HashSubset
    fates: bytearray = field(default_factory=bytearray)
    chunk_documents: list[int] = field(default_factory=list)
    chunk_bytes: list[int] = field(default_factory=list)
    lines: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)
    exact_duplicates: int = 0
    near_duplicates: int = 0
    near_in_val: int = 0
    dropped_in_val: int = 0
    duplicates: Duplicates = field(default_factory=Duplicates)
    _seen: set[bytes] = field(default_factory=set)
    _val_file_digests: set[bytes] = field(default_factory=set)
    _near: NearIndex = field(default_factory=NearIndex)
    _smallest: bytes = b"\xff" * DIGEST_BYTES
    _smallest_places: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = Surveying(val_cut(self.val_fraction), self.dedup == "near", self.repetition.drops)

    def add(self, found: ChunkSurvey) -> None:
        """Take in what a worker found, in the order of the chunks: validation files first."""
        self.lines += found.lines
        self.skipped[EMPTY_TEXT] += found.empty
        for line, reason in found.problems:
            self.skipped[reason] += 1
            if len(self.bad_lines) < BAD_LINES_KEPT:
                self.bad_lines.append(f"{found.source}:{line}: {REASONS[reason]}")
        start = len(self.fates)
        self._decide(found)
        self.chunk_documents.append(len(self.fates) - start)
        self.chunk_bytes.append(found.text_bytes)
        if found.signatures is not None:
            kept = [i for i, fate in enumerate(self.fates[start:]) if fate != DROP]
            digests = b"".join(found.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in kept)
            places = [start + i for i in kept]
            self._near.add(found.signatures[kept], digests, places, preferred=found.from_val_file)
        for digest, text, size in found.candidates:
            if digest not in self._val_file_digests:
                self.sample.add(digest, text, size)

    def _decide(self, found: ChunkSurvey) -> None:
        """The fates of the documents of a chunk; those of validation files stay, however repetitive."""
        scored = []
        for i in range(len(found.digests) // DIGEST_BYTES):
            digest = found.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
            if self._is_exact_duplicate(digest, found.from_val_file):
                self.fates.append(DROP)
                continue
            if not found.from_val_file:
                scored.append(i)
                if i in found.repetitive and self._drops_repetitive(digest, found.scores[i], found.repetitive[i]):
                    self.fates.append(DROP)
                    continue
            self.fates.append(self._side(digest, found.from_val_file))
        self.repetition.add(found.scores[scored])

    def _is_exact_duplicate(self, digest: bytes, from_val_file: bool) -> bool:
        """Whether the next document is to be dropped as one that was there before."""
        if from_val_file:
            self._val_file_digests.add(digest)
        elif digest in self._val_file_digests:
            self.dropped_in_val += 1
            return True
        if digest in self._seen:
            self.exact_duplicates += 1
            self.duplicates.add_exact(digest, len(self.fates))
            return self.dedup != "none"
        self._seen.add(digest)
        return False

    def _drops_repetitive(self, digest: bytes, values: np.ndarray, beginning: str) -> bool:
        self.repetition.add_example(digest, values, beginning)
        self.repetition.dropped += self.repetition.drops
        return self.repetition.drops

    def _side(self, digest: bytes, from_val_file: bool) -> int:
        if from_val_file or is_val(digest, self.wanted.cut):
            return VAL
        if digest < self._smallest:
            self._smallest, self._smallest_places = digest, []
        if digest == self._smallest:
            self._smallest_places.append(len(self.fates))
        return TRAIN

    def finish(self, max_bad_share: float, inputs: Sequence[Path], val_inputs: Sequence[Path]) -> None:
        """Check what was found and drop near duplicates; UserError if too many lines are bad or a side that should
        hold documents does not, which names the files.
        """
        self._check_bad_share(max_bad_share)
        if self.has_val_files and VAL not in self.fates:
            raise _empty(val_inputs)
        if not self.fates:
            raise _empty(inputs)
        self._drop_near()
        # its own copies are no other documents
        if self.val_fraction and VAL not in self.fates and self.fates.count(TRAIN) > len(self._smallest_places):
            self._give_smallest_to_val()
        if TRAIN not in self.fates:
            mend = "add documents, or give fewer to validation (prepare.py --val_fraction, --val_input)"
            if self.repetition.dropped:
                mend += f"; {self.repetition.dropped:,} repeat themselves and would stay with --repetition keep"
            if self.near_in_val:
                mend += f"; {self.near_in_val:,} are near to validation documents and would stay with --dedup exact"
            if self.dropped_in_val:
                mend += f"; {self.dropped_in_val:,} stand in --val_input too"
            raise UserError(f"--input: no document is left to train on; {mend}")
        self._seen.clear()
        self._val_file_digests.clear()

    def _drop_near(self) -> None:
        """Drop near duplicates; a validation document is preferred to a training one, so none is near to it after."""
        pairs = self._near.resolve()
        fates = np.frombuffer(self.fates, dtype=np.uint8)
        self.near_duplicates = len(pairs.dropped)
        self.near_in_val = int(((fates[pairs.dropped] == TRAIN) & (fates[pairs.kept] == VAL)).sum())
        fates[pairs.dropped] = DROP
        self.sample.discard(pairs.digests)
        self.duplicates.add_near(pairs)

    def _give_smallest_to_val(self) -> None:
        """A corpus too small for its fraction still gets one validation document, the same one every time."""
        for place in self._smallest_places:
            self.fates[place] = VAL
        self.sample.discard([self._smallest])

    def _check_bad_share(self, max_bad_share: float) -> None:
        if self.bad > max_bad_share * self.lines:
            share = f"{self.bad:,} of {self.lines:,} lines are bad ({self.bad / self.lines:.2%})"
            raise UserError(
                f"{share}, more than --max_bad_share {max_bad_share:g} allows; mend them, or prepare with "
                "prepare.py and a higher --max_bad_share. "
                f"The first:{_listing(self.bad_lines)}"
            )

    @property
    def bad(self) -> int:
        """The number of bad lines; empty texts are none."""
        return sum(self.skipped[reason] for reason in REASONS)

    def duplicates_report(self) -> dict[str, Any]:
        """The key "duplicates" of the corpus report; `near_in_val` of the near ones were left out of train since val
        has the like. The texts of the examples must have been added.
        """
        return {
            "exact": self.exact_duplicates,
            "near": self.near_duplicates,
            "near_in_val": self.near_in_val,
            "examples": self.duplicates.examples(),
        }

    def report(self) -> str:
        """The skipped lines, for people; empty if there are none."""
        if not self.bad:
            return ""
        reasons = ", ".join(f"{self.skipped[key]:,} {text}" for key, text in REASONS.items() if self.skipped[key])
        return f"skipped {self.bad:,} of {self.lines:,} lines ({reasons}). The first:{_listing(self.bad_lines)}"


def _listing(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines[:BAD_LINES_NAMED])


def _empty(files: Sequence[Path]) -> UserError:
    names = ", ".join(map(str, files[:_MOST_NAMED])) + (" and others" if len(files) > _MOST_NAMED else "")
    return UserError(f'no documents in {names}; each line should be {{"text": ...}}')

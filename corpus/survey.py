"""The first pass: every document is hashed, counted and told where it goes, before any is tokenized.

It costs a few per cent of the second pass and buys three things: bad input fails early, duplicates are never encoded,
and the tokenizer learns from training documents alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import UserError
from .reader import EMPTY_TEXT, REASONS, Chunk, parse_chunk
from .split import DIGEST_BYTES, DROP, TRAIN, VAL, HashSubset, document_digest, is_val, val_cut

BAD_LINES_KEPT = 100
BAD_LINES_NAMED = 10


@dataclass(frozen=True)
class ChunkSurvey:
    """What a worker tells about a chunk; `candidates` are (digest, text, bytes) for the tokenizer's sample."""

    source: str
    from_val_file: bool
    file_bytes: int
    lines: int
    empty: int
    problems: list[tuple[int, str]]
    digests: bytes
    text_bytes: int
    candidates: list[tuple[bytes, str, int]]


def survey_chunk(chunk: Chunk, from_val_file: bool, cut: bytes, ceiling: bytes) -> ChunkSurvey:
    """Parse and hash a chunk; training documents with digests up to `ceiling` are sent along. Runs in a worker."""
    parsed = parse_chunk(chunk)
    digests = [document_digest(encoded) for encoded in parsed.encoded]
    candidates = [
        (digest, text, len(encoded))
        for digest, text, encoded in zip(digests, parsed.texts, parsed.encoded, strict=True)
        if digest <= ceiling and not from_val_file and not is_val(digest, cut)
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
    )


@dataclass
class Survey:
    """The findings of the first pass.

    `_seen` is the one thing that grows with the input: a set of 16-byte digests, about 110 bytes a distinct document
    (150 MB for 1.4 million), freed by `finish`. `fates` keeps one byte a document.
    """

    dedup: str
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
    dropped_in_val: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _val_file_digests: set[bytes] = field(default_factory=set)
    _smallest: bytes = b"\xff" * DIGEST_BYTES
    _smallest_places: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cut = val_cut(self.val_fraction)

    def add(self, found: ChunkSurvey) -> None:
        """Take in what a worker found, in the order of the chunks: validation files first."""
        self.lines += found.lines
        self.skipped[EMPTY_TEXT] += found.empty
        for line, reason in found.problems:
            self.skipped[reason] += 1
            if len(self.bad_lines) < BAD_LINES_KEPT:
                self.bad_lines.append(f"{found.source}:{line}: {REASONS[reason]}")
        start = len(self.fates)
        for at in range(0, len(found.digests), DIGEST_BYTES):
            self.fates.append(self._fate(found.digests[at : at + DIGEST_BYTES], found.from_val_file))
        self.chunk_documents.append(len(self.fates) - start)
        self.chunk_bytes.append(found.text_bytes)
        for digest, text, size in found.candidates:
            if digest not in self._val_file_digests:
                self.sample.add(digest, text, size)

    def _fate(self, digest: bytes, from_val_file: bool) -> int:
        if from_val_file:
            self._val_file_digests.add(digest)
        elif digest in self._val_file_digests:
            self.dropped_in_val += 1
            return DROP
        if digest in self._seen:
            self.exact_duplicates += 1
            if self.dedup == "exact":
                return DROP
        self._seen.add(digest)
        if from_val_file or is_val(digest, self.cut):
            return VAL
        if digest < self._smallest:
            self._smallest, self._smallest_places = digest, []
        if digest == self._smallest:
            self._smallest_places.append(len(self.fates))
        return TRAIN

    def finish(self, max_bad_share: float) -> None:
        """Check what was found; UserError if too many lines are bad or a side that should hold documents does not."""
        self._check_bad_share(max_bad_share)
        if self.has_val_files and VAL not in self.fates:
            raise UserError("--val_input: no documents in the files; each line should be {\"text\": ...}")
        if not self.fates:
            raise UserError("--input: no documents in the files; each line should be {\"text\": ...}")
        if self.val_fraction and VAL not in self.fates and len(self._seen) > 1:
            self._give_smallest_to_val()
        if TRAIN not in self.fates:
            raise UserError("--input: no document is left to train on; add documents, or give fewer to validation "
                            "(prepare.py --val_fraction, --val_input)")
        self._seen.clear()
        self._val_file_digests.clear()

    def _give_smallest_to_val(self) -> None:
        """A corpus too small for its fraction still gets one validation document, the same one every time."""
        for place in self._smallest_places:
            self.fates[place] = VAL
        self.sample.discard(self._smallest)

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

    def report(self) -> str:
        """The skipped lines, for people; empty if there are none."""
        if not self.bad:
            return ""
        reasons = ", ".join(f"{self.skipped[key]:,} {text}" for key, text in REASONS.items() if self.skipped[key])
        return f"skipped {self.bad:,} of {self.lines:,} lines ({reasons}). The first:{_listing(self.bad_lines)}"


def _listing(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines[:BAD_LINES_NAMED])

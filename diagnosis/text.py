"""The text that a model is judged on, as two streams of its own token ids: what it learned from, and held-out text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from corpus.ngram_baselines import NGramBaselines, measure
from corpus.reader import parse_chunk, read_chunks
from corpus.report import CorpusReport
from corpus.shards import Corpus, TokenStream
from corpus.split import document_digest, is_val, val_cut
from corpus.tokenizer import PROBES, load_tokenizer
from diagnosis.models import Subject

# Text read where there is no prepared corpus in the model's own tokens: enough for the ladder's counts, seconds to read
TRAIN_BYTES, HELD_OUT_BYTES = 6_000_000, 300_000
# The same documents as with prepare.py's share are held out, and more of them where the text is short
HELD_OUT_SHARES = (0.005, 0.05, 0.2)
PROBED_DOCUMENTS = 20


@dataclass(frozen=True)
class Text:
    """`train` is what the model learned from, or text like it; `held_out` may be empty. `report` is the corpus's."""

    name: str
    train: TokenStream
    held_out: TokenStream
    bytes_per_token: float
    ladder: NGramBaselines | None
    report: dict[str, Any] | None = None
    is_own: bool = True
    """Whether it is the corpus, row by row, that the model was trained on and evaluated with."""
    settings: dict[str, Any] = field(default_factory=dict)


def open_text(path: Path, subject: Subject | None, own_corpus: Path | None, fingerprint: str | None = None) -> Text:
    """Text from a prepared folder or a .jsonl[.gz|.zst] file, in the subject's tokens; UserError if there is none.

    The run's own text is told by its `fingerprint`, wherever it lies, or else by `own_corpus`, the place that it had.
    Without a subject (a run that has no model yet) only a prepared folder can be read.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder: give --data a folder of prepare.py or a .jsonl file")
    if path.is_dir():
        corpus = Corpus.open(path, verify="size")
        own = (
            own_corpus is not None and path.resolve() == own_corpus.resolve()
            if fingerprint is None
            else fingerprint == corpus.manifest.fingerprint
        )
        if subject is None or _same_tokenizer(corpus, subject):
            return _prepared(corpus, own)
        train, held_out = (
            list(_first_bytes(_texts_of(corpus, name), most))
            for name, most in (("train", TRAIN_BYTES), ("val", HELD_OUT_BYTES))
        )
        return _encoded(path, train, held_out, subject, _report(path))
    if subject is None:
        raise UserError(f"--data {path}: without a model only a folder of prepare.py can be read")
    texts = list(_first_bytes(_texts_in(path), TRAIN_BYTES + HELD_OUT_BYTES))
    if not texts:
        raise UserError(f'{path} holds no text that could be read: write {{"text": "..."}} a line')
    return _encoded(path, *_split(texts), subject, None)


def documents(
    stream: TokenStream, begin_id: int | None, end_id: int, most_tokens: int, pieces: int = 1
) -> Iterator[np.ndarray]:
    """Whole documents without their end marks, from `pieces` places spread over the stream, `most_tokens` in all."""
    size = min(len(stream), most_tokens)
    pieces = 1 if size == len(stream) else pieces
    for piece in range(pieces):
        ids = stream.read(piece * len(stream) // pieces, size // pieces)
        ends = np.flatnonzero(ids == end_id)
        if begin_id is not None:
            ends = ends[(ends + 1 == len(ids)) | (ids[np.minimum(ends + 1, len(ids) - 1)] == begin_id)]
        # the first is cut off at its beginning, unless the stream begins here
        start = 0 if piece == 0 else int(ends[0]) + 1 if len(ends) else len(ids)
        for end in ends[ends >= start].tolist():
            yield ids[start:end]
            start = end + 1


def _prepared(corpus: Corpus, own: bool) -> Text:
    train, held_out = corpus.split("train"), corpus.split("val")
    info = corpus.manifest.splits["val" if len(held_out) else "train"]
    bytes_per_token = info.bytes / info.tokens if info.tokens else 1.0
    ladder = corpus.manifest.ngram_baselines
    if ladder is None and len(train) and len(held_out):
        ladder = measure(train, held_out, corpus.manifest.vocab_size, bytes_per_token)
    return Text(
        str(corpus.folder),
        train,
        held_out,
        bytes_per_token,
        ladder,
        _report(corpus.folder),
        own,
        corpus.manifest.settings,
    )


def _encoded(
    path: Path, train: list[str], held_out: list[str], subject: Subject, report: dict[str, Any] | None
) -> Text:
    if not held_out or not train:
        raise UserError(
            f"{path}: its {len({*train, *held_out}):,} different documents are too few to hold some out: give more text"
        )
    streams = [_stream(part, subject) for part in (train, held_out)]
    bytes_per_token = sum(len(text.encode()) for text in held_out) / max(1, len(streams[1]))
    ladder = measure(streams[0], streams[1], subject.vocab_size, bytes_per_token)
    return Text(str(path), streams[0], streams[1], bytes_per_token, ladder, report, is_own=False)


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """(train, held out) by each document's hash, so that copies of a document are on the same side."""
    digests = [document_digest(text.encode()) for text in texts]
    train: list[str] = []
    held_out: list[str] = []
    for share in HELD_OUT_SHARES:
        cut = val_cut(share)
        sides = [is_val(digest, cut) for digest in digests]
        train = [text for text, side in zip(texts, sides, strict=True) if not side]
        held_out = [text for text, side in zip(texts, sides, strict=True) if side]
        if sum(map(len, held_out)) * 3 >= HELD_OUT_BYTES // 10:
            break
    return train, list(_first_bytes(held_out, HELD_OUT_BYTES))


def _stream(texts: list[str], subject: Subject) -> TokenStream:
    begin = [] if subject.begin_id is None else [subject.begin_id]
    end = [] if subject.end_id < 0 else [subject.end_id]
    ids = [token for document in subject.encode(texts) for token in (*begin, *document, *end)]
    return TokenStream([np.array(ids, dtype=np.int64)])


def _first_bytes(texts: Iterable[str], most: int) -> Iterator[str]:
    size = 0
    for text in texts:
        if size >= most:
            return
        size += len(text.encode())
        yield text


def _texts_in(path: Path) -> Iterator[str]:
    """Documents of a JSON Lines file; of a long one that is not compressed, from chunks spread over all of it."""
    plain = path.suffix == ".jsonl"
    every = max(1, path.stat().st_size // (TRAIN_BYTES + HELD_OUT_BYTES)) if plain else 1
    for number, chunk in enumerate(read_chunks(path)):
        if number % every == 0:
            yield from parse_chunk(chunk).texts


def _texts_of(corpus: Corpus, split: str) -> Iterator[str]:
    """Documents of a prepared folder, back as text."""
    tokenizer, manifest = load_tokenizer(corpus.tokenizer_path), corpus.manifest
    for ids in documents(corpus.split(split), manifest.bos_id, manifest.eos_id, TRAIN_BYTES // 2, pieces=8):
        yield tokenizer.decode(ids.tolist())


def _same_tokenizer(corpus: Corpus, subject: Subject) -> bool:
    """Judged by what both make of rare characters and of the corpus's own text, where their merges show."""
    tokenizer: Tokenizer = load_tokenizer(corpus.tokenizer_path)
    probes = [*PROBES.values(), *islice(_texts_of(corpus, "train"), PROBED_DOCUMENTS)]
    theirs = [encoding.ids for encoding in tokenizer.encode_batch(probes, add_special_tokens=False)]
    return theirs == subject.encode(probes) and (corpus.manifest.bos_id, corpus.manifest.eos_id) == (
        subject.begin_id,
        subject.end_id,
    )


def _report(folder: Path) -> dict[str, Any] | None:
    try:
        return CorpusReport.read(folder).model_dump()
    except UserError:
        return None

"""The text that a model is measured on: two streams of its own token ids, training text and held-out text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from corpus.manifest import MANIFEST_NAME
from corpus.ngram_baselines import NGramBaselines, measure
from corpus.reader import parse_chunk, read_chunks, text_files
from corpus.report import CorpusReport
from corpus.shards import Corpus, TokenStream
from corpus.split import document_digest, val_cut
from corpus.tokenizer import PROBES, load_tokenizer
from diagnosis.models import ModelUnderTest
from evaluation.documents import documents

# Read where there is no corpus in the model's own tokens: enough for n-gram counts, and a matter of seconds.
TRAIN_BYTES, HELD_OUT_BYTES = 6_000_000, 300_000
# The same documents as with prepare.py's share are held out, and more of them where the text is short.
HELD_OUT_SHARES = (0.005, 0.05, 0.2)
COMPARED_DOCUMENTS = 20


@dataclass(frozen=True)
class Text:
    """`train` is the training text, or text like it; `held_out` may be empty. `report` is the corpus's report.json."""

    name: str
    train: TokenStream
    held_out: TokenStream
    baselines: NGramBaselines | None
    report: dict[str, Any] | None = None
    is_own: bool = False
    """Whether it is, row by row, the corpus that the model was trained on and evaluated with."""
    settings: dict[str, Any] = field(default_factory=dict)


def open_text(
    path: Path, model: ModelUnderTest | None, own_corpus: Path | None = None, fingerprint: str | None = None
) -> Text:
    """Return text from a prepared folder, a file or a folder of text in the model's tokens; UserError if there is none.

    The run's own corpus is recognised by its `fingerprint`, wherever it is now, or else by its place `own_corpus`.
    Without a model (a run that has not saved one yet) only a prepared folder can be read.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder: give --data a folder of prepare.py or a .jsonl file")
    if (path / MANIFEST_NAME).is_file():
        corpus = Corpus.open(path, verify="size")
        if model is None or _same_tokenizer(corpus, model):
            same_place = own_corpus is not None and path.resolve() == own_corpus.resolve()
            return _prepared(corpus, same_place if fingerprint is None else fingerprint == corpus.manifest.fingerprint)
        train, held_out = (
            list(_first_bytes(_texts_of(corpus, split), most))
            for split, most in (("train", TRAIN_BYTES), ("val", HELD_OUT_BYTES))
        )
        return _encoded(path, train, held_out, model, _report(path))
    if model is None:
        raise UserError(f"--data {path}: without a model only a folder of prepare.py can be read")
    texts = list(_first_bytes(_texts_in(path), TRAIN_BYTES + HELD_OUT_BYTES))
    if not texts:
        raise UserError(f'{path} has no text that could be read: write one {{"text": "..."}} on each line')
    return _encoded(path, *_split(texts), model, None)


def _prepared(corpus: Corpus, is_own: bool) -> Text:
    train, held_out = corpus.split("train"), corpus.split("val")
    baselines, info = corpus.manifest.ngram_baselines, corpus.manifest.splits["val"]
    if baselines is None and len(train) and len(held_out):
        vocab_size, bytes_per_token = corpus.manifest.vocab_size, info.bytes / info.tokens
        baselines = measure(train, held_out, vocab_size, bytes_per_token)
    return Text(
        str(corpus.folder), train, held_out, baselines, _report(corpus.folder), is_own, corpus.manifest.settings
    )


def _encoded(
    path: Path, train: list[str], held_out: list[str], model: ModelUnderTest, report: dict[str, Any] | None
) -> Text:
    if not held_out or not train:
        raise UserError(
            f"{path}: its {len({*train, *held_out}):,} different documents are too few to hold some out: give more text"
        )
    train_ids, held_out_ids = _stream(train, model), _stream(held_out, model)
    bytes_per_token = sum(len(text.encode()) for text in held_out) / max(1, len(held_out_ids))
    baselines = measure(train_ids, held_out_ids, model.vocab_size, bytes_per_token)
    return Text(str(path), train_ids, held_out_ids, baselines, report)


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Return (train, held out) by each document's hash, so that copies of a document are on the same side."""
    digests = [document_digest(text.encode()) for text in texts]
    train: list[str] = []
    held_out: list[str] = []
    for share in HELD_OUT_SHARES:
        cut = val_cut(share)
        train, held_out = [], []
        for text, digest in zip(texts, digests, strict=True):
            (held_out if digest < cut else train).append(text)
        if sum(map(len, held_out)) * 3 >= HELD_OUT_BYTES // 10:
            break
    return train, list(_first_bytes(held_out, HELD_OUT_BYTES))


def _stream(texts: list[str], model: ModelUnderTest) -> TokenStream:
    bos = [] if model.bos_id is None else [model.bos_id]
    eos = [] if model.eos_id < 0 else [model.eos_id]
    ids = [token for document in model.encode(texts) for token in (*bos, *document, *eos)]
    return TokenStream([np.array(ids, dtype=np.int64)])


def _first_bytes(texts: Iterable[str], most: int) -> Iterator[str]:
    size = 0
    for text in texts:
        if size >= most:
            return
        size += len(text.encode())
        yield text


def _texts_in(path: Path) -> Iterator[str]:
    """Yield documents of text in any format; of one long uncompressed file, from chunks spread over all of it."""
    every = max(1, path.stat().st_size // (TRAIN_BYTES + HELD_OUT_BYTES)) if path.suffix == ".jsonl" else 1
    chunks = (chunk for file in text_files([path]) for chunk in read_chunks(file))
    for chunk in islice(chunks, 0, None, every):
        yield from parse_chunk(chunk).texts


def _texts_of(corpus: Corpus, split: str) -> Iterator[str]:
    """Yield documents of a prepared folder, decoded to text."""
    tokenizer, manifest = load_tokenizer(corpus.tokenizer_path), corpus.manifest
    for ids in documents(corpus.split(split), manifest.bos_id, manifest.eos_id, TRAIN_BYTES // 2, places=8):
        yield tokenizer.decode(ids.tolist())


def _same_tokenizer(corpus: Corpus, model: ModelUnderTest) -> bool:
    """Return whether both encode rare characters and some of the corpus's text, where merges show, to the same ids."""
    texts = [*PROBES.values(), *islice(_texts_of(corpus, "train"), COMPARED_DOCUMENTS)]
    encodings = load_tokenizer(corpus.tokenizer_path).encode_batch(texts, add_special_tokens=False)
    special = (corpus.manifest.bos_id, corpus.manifest.eos_id)
    return [encoding.ids for encoding in encodings] == model.encode(texts) and special == (model.bos_id, model.eos_id)


def _report(folder: Path) -> dict[str, Any] | None:
    try:
        report = CorpusReport.read(folder).model_dump()
    except UserError:
        return None
    return report | {"ladder": report["ngram_baselines"]}  # the key by which --json has always had them

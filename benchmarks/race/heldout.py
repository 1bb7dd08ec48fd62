"""Bits per byte on held-out text: the one yardstick for every trainer, whatever its tokenizer and its own losses.

Each document is begin mark + tokens + end mark, cut into windows of at most `max_seq_len` predictions. A window is read
alone and starts with the token that the one before ended with, so that every token of the document and the end mark are
predicted exactly once. The sum of nats over the bytes of the text gives bits per byte.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.race.peers import score
from benchmarks.race.peers.process import follow
from common.errors import UserError
from corpus.reader import parse_chunk, read_chunks, text_files

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class HeldOut:
    """Rows on disk for peers/score.py, and the bytes of the text that they hold."""

    rows: Path
    text_bytes: int
    tokens: int


@dataclass(frozen=True)
class Score:
    """Of one set of weights."""

    bits_per_byte: float
    nats_per_token: float
    parameters: int


def read_texts(path: Path) -> list[str]:
    """All documents of a .jsonl[.gz|.zst] file; UserError if it holds none."""
    texts = [text for file in text_files([path]) for chunk in read_chunks(file) for text in parse_chunk(chunk).texts]
    if not texts:
        raise UserError(f'{path} holds no document: give JSON Lines of {{"text": ...}}')
    return texts


def windows(ids: Sequence[int], max_seq_len: int) -> Iterator[Sequence[int]]:
    """Parts of at most max_seq_len + 1 ids that overlap by one: all but the very first id are predicted once."""
    for start in range(0, len(ids) - 1, max_seq_len):
        yield ids[start : start + max_seq_len + 1]


def write_rows(
    path: Path, texts: Iterable[str], tokenizer: Path, *, bos_id: int, eos_id: int, max_seq_len: int
) -> HeldOut:
    """Tokenize the documents and write their windows."""
    encoder, texts = Tokenizer.from_file(str(tokenizer)), list(texts)
    rows = [
        window
        for coded in encoder.encode_batch(texts, add_special_tokens=False)
        for window in windows([bos_id, *coded.ids, eos_id], max_seq_len)
    ]
    ids = np.zeros((len(rows), max_seq_len + 1), dtype=np.uint32)
    for row, window in zip(ids, rows, strict=True):
        row[: len(window)] = window
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, ids=ids, lengths=np.array([len(window) for window in rows], dtype=np.int64))
    return HeldOut(path, sum(len(text.encode()) for text in texts), sum(len(window) - 1 for window in rows))


def judge(
    held_out: HeldOut, kind: str, weights: Sequence[Path], *, pythonpath: Path | None = None, threads: int
) -> list[Score]:
    """Score weights of one trainer in a process of its own; our own code is found if no `pythonpath` is given."""
    if not weights:
        return []
    result = held_out.rows.with_name("scores.json")
    result.unlink(missing_ok=True)
    follow(
        [
            sys.executable,
            score.__file__,
            kind,
            held_out.rows.absolute(),
            result.absolute(),
            threads,
            *(path.absolute() for path in weights),
        ],
        folder=held_out.rows.parent,
        log=held_out.rows.with_name("score.log"),
        environment={"PYTHONPATH": pythonpath.absolute() if pythonpath else ROOT, "OMP_NUM_THREADS": threads},
    )
    return [
        Score(found["nats"] / math.log(2) / held_out.text_bytes, found["nats"] / found["tokens"], found["parameters"])
        for found in json.loads(result.read_text(encoding="utf-8"))
    ]

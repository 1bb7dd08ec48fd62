"""Bits a byte by the length of a document and by the position in it: does a model use its context?

Each document is measured by itself, from its BOS on (or from an EOS, where a model has no BOS). A model that uses its
context needs fewer bits the further it has read; one that does not needs as many everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluation.token_losses import Logits, token_losses

POSITIONS = (0, 8, 32, 128, 512)  # tokens into the document; the last bucket is open
LENGTHS = (0, 200, 1000, 4000)  # bytes of the document


@dataclass(frozen=True)
class Bucket:
    """Bits a byte over `bytes` bytes of text, from `start` up to `end` (None: open)."""

    start: int
    end: int | None
    bits_per_byte: float
    bytes: int


def measure_context(
    documents: Sequence[Sequence[int]],
    logits: Logits,
    decode: Callable[[Sequence[int]], str],
    *,
    start_id: int | None,
    vocab_size: int,
    longest: int,
) -> tuple[list[Bucket], list[Bucket]]:
    """Return bits a byte (by position, by document length) of documents of ids without BOS and EOS.

    Of a longer document the first `longest` tokens are measured. FloatingPointError if an output is not finite.
    """
    start = [] if start_id is None else [start_id]
    sequences = [np.array([*start, *document[: longest - 1]], dtype=np.int64) for document in documents]
    losses = token_losses(logits, sequences, vocab_size)
    by_position, by_length = np.zeros((len(POSITIONS), 2)), np.zeros((len(LENGTHS), 2))
    for document, nats in zip(documents, losses, strict=True):
        skipped = 0 if start else 1  # the first token of a document without BOS has no loss
        ids = list(document[: skipped + len(nats)])
        edges = [skipped, *(edge for edge in POSITIONS if skipped < edge < len(ids)), len(ids)]
        sizes = [len(decode(ids[:edge]).encode()) if edge else 0 for edge in edges]
        parts = [
            (nats[a - skipped : b - skipped].sum(), after - before)
            for (a, b), (before, after) in zip(pairwise(edges), pairwise(sizes), strict=True)
        ]
        for (a, _), part in zip(pairwise(edges), parts, strict=True):
            by_position[_bucket(a, POSITIONS)] += part
        whole = len(decode(list(document)).encode()) if len(ids) < len(document) else sizes[-1]
        by_length[_bucket(whole, LENGTHS)] += np.sum(parts, axis=0) if parts else (0.0, 0.0)
    return _buckets(by_position, POSITIONS), _buckets(by_length, LENGTHS)


def _bucket(value: int, edges: Sequence[int]) -> int:
    return max(k for k, edge in enumerate(edges) if edge <= value)


def _buckets(sums: np.ndarray, edges: Sequence[int]) -> list[Bucket]:
    """Return the buckets that hold text, from sums of (nats, bytes)."""
    return [
        Bucket(edges[k], edges[k + 1] if k + 1 < len(edges) else None, float(nats) / math.log(2) / size, int(size))
        for k, (nats, size) in enumerate(sums.tolist())
        if size > 0
    ]

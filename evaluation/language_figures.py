"""What a small model knows of its language, in figures that need no labels: minimal pairs, and its use of context.

Training measures them at the end of a run, the diagnosis whenever it is asked. Bits a byte are measured by the length
of a document and by the position in it, each document by itself, from its BOS on (or from an EOS, where a model has no
BOS). A model that uses its context needs fewer bits the further it has read; one that does not needs as many
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluation.minimal_pairs import PAIRS, Encode, PairResult, make_pairs, measure_pairs
from evaluation.token_losses import Logits, token_losses

MOST_DOCUMENTS, MOST_TOKENS = 400, 40_000  # whose bits a byte are measured
PAIR_CHARACTERS = 2000  # of a document that pairs are made from
POSITIONS = (0, 8, 32, 128, 512)  # tokens into the document; the last bucket is open
LENGTHS = (0, 200, 1000, 4000)  # bytes of the document


@dataclass(frozen=True)
class Bucket:
    """Bits a byte over `bytes` bytes of text, from `start` up to `end` (None: open)."""

    start: int
    end: int | None
    bits_per_byte: float
    bytes: int


@dataclass(frozen=True)
class LanguageFigures:
    """Pairs by kind and of all kinds ("all"); bits a byte by position in a document and by its length."""

    minimal_pairs: dict[str, PairResult]
    bits_per_byte_by_position: list[Bucket]
    bits_per_byte_by_length: list[Bucket]

    def scalars(self) -> dict[str, float]:
        """Return the figures by the names that TensorBoard shows them under."""
        found = {f"minimal_pairs/{kind}": result.share for kind, result in self.minimal_pairs.items()}
        for name in ("bits_per_byte_by_position", "bits_per_byte_by_length"):
            found |= {f"{name}/from_{bucket.start}": bucket.bits_per_byte for bucket in getattr(self, name)}
        return found


def measure_figures(
    documents: Sequence[Sequence[int]],
    logits: Logits,
    *,
    encode: Encode,
    decode: Callable[[Sequence[int]], str],
    start_id: int | None,
    vocab_size: int,
    longest: int,
    pairs: int = PAIRS,
) -> LanguageFigures:
    """Measure a model on held-out documents of ids without BOS and EOS.

    `start_id` stands before each text, a BOS or else an EOS; `longest` is how many tokens the model takes at once, and
    `pairs` how many of each kind are made. FloatingPointError if the model's output is not finite.
    """
    chosen, tokens = [], 0
    for document in documents[:MOST_DOCUMENTS]:
        if tokens >= MOST_TOKENS:
            break
        chosen.append(document)
        tokens += min(len(document), longest)
    texts = [decode(document)[:PAIR_CHARACTERS] for document in documents]
    made = make_pairs(texts, encode, start_id, count=pairs, longest=longest)
    by_position, by_length = measure_context(
        chosen, logits, decode, start_id=start_id, vocab_size=vocab_size, longest=longest
    )
    return LanguageFigures(measure_pairs(made, logits, vocab_size), by_position, by_length)


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

"""The ladder of entropies: what models without understanding lose on held-out text, the places that a loss can stand.

Each rung knows one token more: none (uniform), its own frequency (unigram), the token before (bigram), the two tokens
before (trigram). Every rung is a proper distribution over the whole vocabulary for every context, measured on the
targets that the network's validation loss counts, so that the comparison is fair.

Counts are smoothed by interpolated Kneser-Ney with three discounts, estimated from the counts themselves (Chen and
Goodman 1999, "modified Kneser-Ney"); below the unigrams lies the uniform distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from corpus.shards import TokenStream

# 20 million tokens take some seconds and 0.7 GB, of random ids 2 GB; more text lowers the last rung slowly.
MAX_TRAIN_TOKENS = 20_000_000
MAX_HELD_OUT_TOKENS = 2_000_000
PIECES = 64  # a stream that is too long is read in so many pieces, spread evenly
# The discounts where the counts are too few or too regular to tell any.
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)
_BLOCK = 2**20  # ids that are counted at once
_GROUPED = 2**17  # ids that are put in groups at once
NO_CONTEXT = -1  # stands where the stream does not reach back far enough; no table holds it


@dataclass(frozen=True)
class NGramBaselines:
    """Nats a token on `tokens` held-out targets, by models of `train_tokens` tokens of training text.

    `bytes_per_token` is that of the held-out text, marks counted as tokens.
    """

    uniform: float
    unigram: float
    bigram: float
    trigram: float
    bytes_per_token: float
    tokens: int
    train_tokens: int = 0

    def check(self) -> None:
        """ValueError unless every figure is a number above zero, as those of a file may not be."""
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} of the ladder is {value!r}")

    def rungs(self) -> list[tuple[str, float]]:
        """Name and nats a token, from uniform down to trigram."""
        return [(name, getattr(self, name)) for name in ("uniform", "unigram", "bigram", "trigram")]

    def bits_per_byte(self, nats: float) -> float:
        """Nats a token as bits a byte of the held-out text."""
        return nats / math.log(2) / self.bytes_per_token

    def stands(self, loss: float) -> str:
        """How far down the ladder a loss in nats a token has come: "above_uniform", or "below_" and a rung's name."""
        place = "above_uniform"
        for name, nats in self.rungs():
            if not loss < nats:
                break
            place = f"below_{name}"
        return place


def measure(
    train: np.ndarray | TokenStream,
    held_out: np.ndarray | TokenStream,
    vocab_size: int,
    bytes_per_token: float,
    max_train_tokens: int = MAX_TRAIN_TOKENS,
) -> NGramBaselines:
    """Count `train` and measure every rung on the targets of `held_out`, all of its ids but the first.

    Streams that are longer than `max_train_tokens` (or MAX_HELD_OUT_TOKENS) are read in pieces, spread evenly.
    ValueError if `held_out` has no target, `train` no token, or an id is outside the vocabulary.
    """
    if len(train) < 1 or len(held_out) < 2:
        raise ValueError(f"a ladder needs 1 training and 2 held-out tokens, not {len(train)} and {len(held_out)}")
    model = NGrams(train, vocab_size, max_train_tokens)
    sums, targets = np.zeros(3), 0
    for ids in _pieces(held_out, MAX_HELD_OUT_TOKENS):
        _check_range(ids, vocab_size)
        before = ids[:-1]
        before_that = np.concatenate(([NO_CONTEXT], ids[:-2]))
        sums -= [np.log(found).sum() for found in model.probabilities(before_that, before, ids[1:])]
        targets += len(ids) - 1
    unigram, bigram, trigram = (sums / targets).tolist()
    return NGramBaselines(math.log(vocab_size), unigram, bigram, trigram, bytes_per_token, targets, model.tokens)


class NGrams:
    """Smoothed unigrams, bigrams and trigrams of a stream of ids below `vocab_size` (at most 2^16).

    A rung's own order counts occurrences; the orders below it count the different contexts that a token was seen in.
    """

    def __init__(self, train: np.ndarray | TokenStream, vocab_size: int, max_tokens: int = MAX_TRAIN_TOKENS) -> None:
        self.vocab_size = vocab_size
        pieces = []
        for piece in _pieces(train, max_tokens):
            _check_range(piece, vocab_size)
            pieces.append(piece.astype(np.uint32))
        self.tokens = sum(map(len, pieces))
        # a triple as its first token and the pair that follows: 16 and 32 bits
        pairs = [piece[:-1] * np.uint32(vocab_size) + piece[1:] for piece in pieces]
        firsts, rests, triple_counts = _tally_keys([piece[:-2] for piece in pieces], [pair[1:] for pair in pairs])
        last_pairs = [int(pair[-1]) for pair in pairs if len(pair)]
        last_words = [int(piece[-1]) for piece in pieces]
        del pieces, pairs
        # A pair is the beginning of a triple, and a token that of a pair, but for those at the end of a piece.
        keys, counts = _with_more(*_merged(firsts * vocab_size + rests // vocab_size, triple_counts), last_pairs)
        self._unigrams = _Table(*_with_more(*_merged(keys // vocab_size, counts), last_words), vocab_size)
        self._bigrams = _Table(keys, counts, vocab_size)
        # after how many different tokens a token was seen
        contexts = _frequencies(keys % vocab_size)
        words = np.flatnonzero(contexts)
        self._word_contexts = _Table(words, contexts[words], vocab_size)
        del keys, counts
        keys = firsts * vocab_size**2 + rests
        del firsts
        self._trigrams = _Table(keys, triple_counts, vocab_size)
        del keys, triple_counts
        # after how many different tokens a pair was seen
        rests.sort()
        starts = _run_starts(rests)
        counts = np.diff(starts, append=len(rests))
        self._pair_contexts = _Table(rests[starts].astype(np.int64), counts, vocab_size)

    def probabilities(
        self, before_that: np.ndarray, before: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(token), P(token | before) and P(token | before_that, before), each like `tokens` in shape (n,).

        `before_that` may be NO_CONTEXT; the trigram then does with `before`.
        """
        start = np.zeros_like(tokens)
        both = np.where(before_that == NO_CONTEXT, NO_CONTEXT, before_that * self.vocab_size + before)
        uniform = np.full(len(tokens), 1 / self.vocab_size)
        lowest = self._word_contexts.refine(start, tokens, uniform)
        return (
            self._unigrams.refine(start, tokens, uniform),
            self._bigrams.refine(before, tokens, lowest),
            self._trigrams.refine(both, tokens, self._pair_contexts.refine(before, tokens, lowest)),
        )


class _Table:
    """Discounted counts of one order, by key (context * vocabulary + token), keys ascending."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._keys = keys
        discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
        contexts = keys // vocab_size
        starts = _run_starts(contexts)
        self._contexts = contexts[starts]
        totals = np.add.reduceat(counts, starts) if len(starts) else np.zeros(0)
        lengths = np.diff(np.append(starts, len(keys)))
        self._shares = (counts - discounts) / np.repeat(totals, lengths)
        self._left = np.add.reduceat(discounts, starts) / totals if len(starts) else np.zeros(0)

    def refine(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probabilities of `tokens` after `contexts`, given those of the order below."""
        left = _look_up(self._contexts, self._left, contexts, 1.0)
        keys = np.where(contexts == NO_CONTEXT, NO_CONTEXT, contexts * self._vocab_size + tokens)
        return _look_up(self._keys, self._shares, keys, 0.0) + left * lower


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float) -> np.ndarray:
    if not len(keys):
        return np.full(len(wanted), default)
    # In ascending order, since a search then goes on in memory that the one before has brought into the cache.
    different, back = np.unique(wanted, return_inverse=True)
    places = np.minimum(np.searchsorted(keys, different), len(keys) - 1)
    return np.where(keys[places] == different, values[places], default)[back]


def _frequencies(ids: np.ndarray) -> np.ndarray:
    """How often each id stands in `ids`: int64 (2^16,). In blocks, since numpy widens what it counts to 8 bytes."""
    counts = np.zeros(2**16, dtype=np.int64)
    for start in range(0, len(ids), _BLOCK):
        counts += np.bincount(ids[start : start + _BLOCK], minlength=2**16)
    return counts


def _tally_keys(firsts: Sequence[np.ndarray], rests: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs of a first (below 2^16) and a rest (uint32), ascending, and how often each occurs: int64,
    uint32, int64.

    Sorting many small groups by the rest takes half the time of sorting all keys at once, for which no cache is large
    enough.
    """
    sizes = sum((_frequencies(part) for part in firsts), np.zeros(2**16, dtype=np.int64))
    ascending = _grouped(firsts, rests, sizes)
    ends = np.cumsum(sizes)
    for first in np.flatnonzero(sizes > 1).tolist():
        ascending[ends[first] - sizes[first] : ends[first]].sort()
    new = np.ones(len(ascending), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    new[ends[:-1][ends[:-1] < len(new)]] = True
    starts = np.flatnonzero(new)
    different = np.diff(np.searchsorted(starts, ends), prepend=0)
    return np.repeat(np.arange(2**16), different), ascending[starts], np.diff(starts, append=len(ascending))


def _grouped(firsts: Sequence[np.ndarray], rests: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """The rests with those of a first side by side, the firsts (`sizes` of them each) ascending: uint32.

    Block by block into the places where each group goes on: a third of the time of sorting all firsts, since the
    order of a block stays in the cache.
    """
    grouped = np.empty(sizes.sum(), dtype=np.uint32)
    filled = np.cumsum(sizes) - sizes
    for first, rest in zip(firsts, rests, strict=True):
        for start in range(0, len(first), _GROUPED):
            block = first[start : start + _GROUPED].astype(np.uint16)
            order = np.argsort(block, kind="stable")  # a radix sort
            counts = np.bincount(block, minlength=2**16)
            places = (filled - np.cumsum(counts) + counts).take(block.take(order)) + np.arange(len(block))
            grouped[places] = rest[start : start + _GROUPED].take(order)
            filled += counts
    return grouped


def _merged(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys with their counts, those that are the same made one."""
    starts = _run_starts(keys)
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _with_more(keys: np.ndarray, counts: np.ndarray, more: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys with their counts, and a few more keys that were seen once each."""
    keys = np.concatenate((keys, np.array(more, dtype=np.int64)))
    order = np.argsort(keys, kind="stable")
    return _merged(keys[order], np.concatenate((counts, np.ones(len(more), dtype=np.int64)))[order])


def _run_starts(ascending: np.ndarray) -> np.ndarray:
    """Where in an ascending array a new value begins."""
    return (
        np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
        if len(ascending)
        else (np.zeros(0, dtype=np.int64))
    )


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
    """What is taken from counts of 1, of 2 and of 3 or more (Chen and Goodman 1999, equation 17)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return USUAL_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    # Every token must keep something, and no count may turn negative.
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else USUAL_DISCOUNTS


def _pieces(stream: np.ndarray | TokenStream, most: int) -> Iterator[np.ndarray]:
    """The ids as int64: all of them in one piece, or PIECES pieces of `most` tokens together, spread evenly."""
    pieces = 1 if len(stream) <= most else min(PIECES, max(1, most // 2))
    length = min(len(stream), most) // pieces
    for piece in range(pieces):
        start = (len(stream) - length) * piece // max(1, pieces - 1)
        read = stream[start : start + length] if isinstance(stream, np.ndarray) else stream.read(start, length)
        yield np.asarray(read, dtype=np.int64)


def _check_range(ids: np.ndarray, vocab_size: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size <= 2**16:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")

"""N-gram baselines: what models without understanding lose on held-out text, to compare a network's loss with.

Each knows one token more: none (uniform), its own frequency (unigram), the token before (bigram), the two tokens
before (trigram). Every baseline is a proper distribution over the whole vocabulary for every context, measured on the
targets that the network's validation loss counts, so that the comparison is fair.

Counts are smoothed by interpolated Kneser-Ney with three discounts, estimated from the counts themselves (Chen and
Goodman 1999, "modified Kneser-Ney"); below the unigrams lies the uniform distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from common.records import MOST, Count, Number, Record

if TYPE_CHECKING:
    from corpus.shards import TokenStream

# 20 million tokens take some seconds and 1 GB, of random ids 2 GB; more text lowers the trigram's loss slowly.
MAX_TRAIN_TOKENS = 20_000_000
MAX_HELD_OUT_TOKENS = 2_000_000
PARTS = 64  # a stream that is too long is read in so many parts, spread evenly
# The discounts where the counts are too few or too regular to tell any.
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)
NO_CONTEXT = -1  # stands where the stream does not reach back far enough; no table holds it


class NGramBaselines(Record):
    """Losses in nats a token on `tokens` held-out targets, by models of `train_tokens` tokens of training text.

    `bytes_per_token` is that of the held-out text, BOS and EOS counted as tokens.
    """

    uniform: Number
    unigram: Number
    bigram: Number
    trigram: Number
    bytes_per_token: Annotated[float, Field(gt=0, le=MOST)]
    tokens: Count
    train_tokens: Count = 0

    def losses(self) -> dict[str, float]:
        """Return nats a token by name, from uniform down to trigram."""
        return {name: getattr(self, name) for name in ("uniform", "unigram", "bigram", "trigram")}

    def bits_per_byte(self, nats: float) -> float:
        """Return nats a token as bits a byte of the held-out text."""
        return nats / math.log(2) / self.bytes_per_token

    def compare(self, loss: float) -> str:
        """Return how a loss in nats a token compares: "above_uniform", or "below_" and the last baseline that it beats.

        A baseline counts as beaten only if those before it are.
        """
        beaten = list(takewhile(lambda name: loss < getattr(self, name), self.losses()))
        return f"below_{beaten[-1]}" if beaten else "above_uniform"


def measure(
    train: np.ndarray | TokenStream,
    held_out: np.ndarray | TokenStream,
    vocab_size: int,
    bytes_per_token: float,
    max_train_tokens: int = MAX_TRAIN_TOKENS,
    mask: TokenStream | None = None,
) -> NGramBaselines:
    """Count `train` and measure every baseline on the targets of `held_out`, all of its ids but the first.

    With a `mask` (like `held_out`, 1 on targets) only those count.

    Streams that are longer than `max_train_tokens` (or MAX_HELD_OUT_TOKENS) are read in parts, spread evenly.
    ValueError if `held_out` has no target, `train` no token, or an id is outside the vocabulary.
    """
    if len(train) < 1 or len(held_out) < 2:
        raise ValueError(
            f"n-gram baselines need 1 training and 2 held-out tokens, not {len(train)} and {len(held_out)}"
        )
    model = NGrams(train, vocab_size, max_train_tokens)
    sums, targets = np.zeros(3), 0
    counted = None if mask is None else _parts(mask, MAX_HELD_OUT_TOKENS)
    for ids in _parts(held_out, MAX_HELD_OUT_TOKENS):
        chosen = slice(None) if counted is None else next(counted)[1:] == 1
        _check_range(ids, vocab_size)
        before = ids[:-1]
        before_that = np.concatenate(([NO_CONTEXT], ids[:-2]))
        found = model.probabilities(before_that[chosen], before[chosen], ids[1:][chosen])
        sums -= [np.log(p).sum() for p in found]
        targets += len(found[0])
    unigram, bigram, trigram = (sums / targets).tolist()
    return NGramBaselines(
        uniform=math.log(vocab_size),
        unigram=unigram,
        bigram=bigram,
        trigram=trigram,
        bytes_per_token=bytes_per_token,
        tokens=targets,
        train_tokens=model.tokens,
    )


class NGrams:
    """Smoothed unigrams, bigrams and trigrams of a stream of ids below `vocab_size` (at most 2^16).

    A model's own order counts occurrences; the orders below it count the different contexts that a token was seen in.
    """

    def __init__(self, train: np.ndarray | TokenStream, vocab_size: int, max_tokens: int = MAX_TRAIN_TOKENS) -> None:
        self.vocab_size = vocab_size
        parts = list(_parts(train, max_tokens))
        for part in parts:
            _check_range(part, vocab_size)
        self.tokens = sum(map(len, parts))
        # A key is the tokens of an n-gram as the digits of one number: at most 48 bits.
        pairs = [part[:-1] * vocab_size + part[1:] for part in parts]
        triples = np.concatenate([pair[:-1] * vocab_size + part[2:] for pair, part in zip(pairs, parts, strict=True)])
        triple_keys, triple_counts = np.unique(triples, return_counts=True)
        del triples
        pair_keys, pair_counts = np.unique(np.concatenate(pairs), return_counts=True)
        del pairs
        self._unigrams = _Table(*np.unique(np.concatenate(parts), return_counts=True), vocab_size)
        self._bigrams = _Table(pair_keys, pair_counts, vocab_size)
        self._trigrams = _Table(triple_keys, triple_counts, vocab_size)
        # after how many different tokens a token was seen, and a pair
        self._word_contexts = _Table(*np.unique(pair_keys % vocab_size, return_counts=True), vocab_size)
        self._pair_contexts = _Table(*np.unique(triple_keys % vocab_size**2, return_counts=True), vocab_size)

    def probabilities(
        self, before_that: np.ndarray, before: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return P(token), P(token | before) and P(token | before_that, before), each like `tokens` in shape (n,).

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
        starts = np.flatnonzero(np.diff(contexts, prepend=-1))
        self._contexts = contexts[starts]
        totals = np.add.reduceat(counts, starts) if len(starts) else np.zeros(0)
        self._shares = (counts - discounts) / np.repeat(totals, np.diff(starts, append=len(keys)))
        self._left = np.add.reduceat(discounts, starts) / totals if len(starts) else np.zeros(0)

    def refine(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return the probabilities of `tokens` after `contexts`, given those of the order below."""
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


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
    """Return what is taken from counts of 1, of 2 and of 3 or more (Chen and Goodman 1999, equation 17)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return USUAL_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    # Every token must keep something, and no count may turn negative.
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else USUAL_DISCOUNTS


def _parts(stream: np.ndarray | TokenStream, most: int) -> Iterator[np.ndarray]:
    """Yield the ids as int64: all of them at once, or PARTS parts of `most` tokens together, spread evenly."""
    parts = 1 if len(stream) <= most else min(PARTS, max(1, most // 2))
    length = min(len(stream), most) // parts
    for part in range(parts):
        start = (len(stream) - length) * part // max(1, parts - 1)
        read = stream[start : start + length] if isinstance(stream, np.ndarray) else stream.read(start, length)
        yield np.asarray(read, dtype=np.int64)


def _check_range(ids: np.ndarray, vocab_size: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size <= 2**16:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}")

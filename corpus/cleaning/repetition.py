"""Documents that repeat themselves, scored: a model learns from them to do the same.

Four measures of a document, each the larger the more it repeats, after the quality rules of Gopher (Rae et al. 2021,
table A1) and the repeating-instance filter of OLMo 2 (OLMo Team 2024), with characters in the place of words:

    lines       share of the characters that stand in lines which occurred before in the document
    ngrams      share of the characters that stand in 12-grams which occurred before in the document
    redundancy  share of the bytes that zlib takes away
    runs        how often one n-gram of up to 16 characters stands in a row; a run that is less than a tenth of the
                document counts up to the limit, so that no novel is dropped for one long laugh

Characters are letters and digits. Space, punctuation and symbols count for redundancy alone: rulers, indentation and
the borders of tables are no repetition.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from corpus.cleaning.normalization import NormalizedTexts, mix, ngram_hashes

RULES = ("lines", "ngrams", "redundancy", "runs")
# A document above any of these is dropped. Fitted on text that should stay: 62,000 classical poems, refrains included,
# reach 0.24, 0.24, 0.58 and 7; 9,000 made-up stories 0, 0.10, 0.51 and 4; technical documentation has its 99th
# percentile at 0.19, 0.70, 0.74 and 4, and what it has above the limits (0.5 % of 4,943) are tables of links. Of six
# times the same sentence 0.83 is a repetition. 32 runs are OLMo's figure.
LIMITS = {"lines": 0.5, "ngrams": 0.8, "redundancy": 0.85, "runs": 32.0}
NGRAM = 12  # Gopher's longest are 10 words
LONGEST_PERIOD = 16
RUN_SHARE = 0.1  # of the characters of a document
MIN_CHARACTERS = 50  # a shorter text is too short for anything but runs
MIN_LINE = 2  # characters; a shorter line is a bracket or the number of an item
EXAMPLES = 10
EXAMPLE_CHARACTERS = 120

_PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
_OTHERS = re.compile(r"[\W_]+")


def scores(texts: Sequence[str], encoded: Sequence[bytes], normalized: NormalizedTexts) -> np.ndarray:
    """Return the four measures of every text, in the order of RULES: float32 (texts, 4)."""
    result = np.zeros((len(texts), len(RULES)), dtype=np.float32)
    counts = normalized.counts()
    result[:, 1] = _repeated_ngrams(normalized) / np.maximum(counts, 1)
    long: list[int] = np.flatnonzero(counts >= MIN_CHARACTERS).tolist()
    result[long, 0] = [_repeated_lines(texts[place]) for place in long]
    sizes = np.array([(len(zlib.compress(encoded[place])), len(encoded[place])) for place in long]).reshape(-1, 2)
    result[long, 2] = np.maximum(0, 1 - sizes[:, 0] / sizes[:, 1])
    result[counts < MIN_CHARACTERS, 1] = 0
    result[:, 3] = _longest_runs(normalized, counts)
    return result


def _repeated_lines(text: str) -> float:
    """Return the share of the characters of a text that stand in lines which occurred before in it."""
    lines = text.split("\n")
    if len(set(lines)) == len(lines):
        return 0.0
    again = [(count - 1, _count_characters(line)) for line, count in Counter(lines).items() if count > 1]
    repeated = sum(count * size for count, size in again if size >= MIN_LINE)
    return repeated / _count_characters(text) if repeated else 0.0


def _count_characters(text: str) -> int:
    """Count letters and digits, as `str.isalnum` tells them."""
    return len(_OTHERS.sub("", text))


def _repeated_ngrams(normalized: NormalizedTexts) -> np.ndarray:
    """Count the characters that stand in n-grams which occurred before in their text, int64 (texts,)."""
    owner = normalized.owner
    hashes = ngram_hashes(normalized.points, NGRAM)
    if not len(hashes):
        return np.zeros(normalized.texts, dtype=np.int64)
    # the same n-gram of two texts must not look repeated
    places = _repeated(mix(hashes + owner[: len(hashes)].astype(np.uint64)))
    places = places[owner[places] == owner[places + NGRAM - 1]]
    covered = np.zeros(len(owner), dtype=bool)
    for place in range(NGRAM):
        covered[places + place] = True
    return np.bincount(owner[covered], minlength=normalized.texts)


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Return the places of all keys that stand at an earlier place too, ascending."""
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    again = np.ones(len(keys), dtype=bool)
    again[np.minimum.reduceat(order, starts)] = False
    return np.flatnonzero(again)


def _longest_runs(normalized: NormalizedTexts, counts: np.ndarray) -> np.ndarray:
    """Return how often the n-gram that is repeated most often in a row stands there, by text, int64 (texts,)."""
    points, owner = normalized.points, normalized.owner
    longest = np.minimum(counts, 1)
    for period in range(1, LONGEST_PERIOD + 1):
        same = np.flatnonzero(points[period:] == points[:-period])
        same = same[owner[same] == owner[same + period]]
        # where a run of neighbouring places begins, and one after the last
        begins = np.flatnonzero(np.diff(same, prepend=-2, append=-2) != 1)
        lengths = np.diff(begins)
        found = np.flatnonzero(lengths >= period)
        texts, repeats = owner[same[begins[found]]], 1 + lengths[found] // period
        small = lengths[found] + period < RUN_SHARE * counts[texts]
        np.maximum.at(longest, texts, np.where(small, np.minimum(repeats, int(LIMITS["runs"])), repeats))
    return longest


def breaks_a_rule(values: np.ndarray) -> np.ndarray:
    """Return which rows of `scores` exceed a limit, bool (texts,)."""
    return np.any(_over(values), axis=1)


def _over(values: np.ndarray) -> np.ndarray:
    return np.greater(values, np.array([LIMITS[rule] for rule in RULES], dtype=np.float32))


@dataclass
class Repetition:
    """The scores of a corpus, 16 bytes a document, and examples of those over a limit."""

    _values: list[np.ndarray] = field(default_factory=list)
    # the documents with the smallest digests, largest first: a choice that no order of files changes
    _examples: list[tuple[int, str, float, str]] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Take in the scores of documents, a row each."""
        self._values.append(values)

    def add_example(self, digest: bytes, values: np.ndarray, text: str) -> None:
        """Offer a document that breaks a rule as an example."""
        rule = RULES[int(np.argmax(values / [LIMITS[rule] for rule in RULES]))]
        entry = (-int.from_bytes(digest, "big"), rule, float(values[RULES.index(rule)]), text[:EXAMPLE_CHARACTERS])
        if entry in self._examples:
            return
        heapq.heappush(self._examples, entry)
        if len(self._examples) > EXAMPLES:
            heapq.heappop(self._examples)

    def report(self, dropped: int) -> dict[str, Any]:
        """Return the key "repetition" of the corpus report; `dropped` documents were left out for it.

        Its `shares` are percentiles of each measure.
        """
        values = np.concatenate([np.zeros((0, len(RULES)), np.float32), *self._values])
        some = values if len(values) else np.zeros((1, len(RULES)))
        found = np.percentile(some, list(_PERCENTILES.values()), axis=0, method="inverted_cdf").T.astype(float).round(3)
        shares = [dict(zip(_PERCENTILES, of_rule, strict=True)) for of_rule in found.tolist()]
        return {
            "scored": len(values),
            "dropped": dropped,
            "thresholds": LIMITS | {"run_share": RUN_SHARE},
            "by_rule": dict(zip(RULES, _over(values).sum(axis=0).tolist(), strict=True)),
            "shares": dict(zip(RULES, shares, strict=True)),
            "examples": [
                {"rule": rule, "value": round(value, 4), "text": text}
                for _, rule, value, text in sorted(self._examples, reverse=True)
            ],
        }

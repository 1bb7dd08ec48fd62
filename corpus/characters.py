"""The letters and digits of many texts in one array, and hashes of their n-grams: what cleaning compares texts by."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .tokenizer import without_marks

_NOTHING = 0  # in the table of letters: a character that is left out
_TABLED = 0x32000  # the last Han characters lie below; what lies above (variation selectors, private use) is left out
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Letters:
    """Code points of the letters, marks and digits of texts: `points` uint32 (n,), `owner` int64 (n,), ascending.

    `owner` is the text that a code point is of, `texts` the number of texts; a text may have none.
    """

    points: np.ndarray
    owner: np.ndarray
    texts: int

    def counts(self) -> np.ndarray:
        """Letters by text, int64 (texts,)."""
        return np.bincount(self.owner, minlength=self.texts)


def letters_and_digits(texts: Sequence[str]) -> Letters:
    """Letters and digits of every text after NFKC, in lower case, without the marks of chats ("<|im_start|>")."""
    plain = [unicodedata.normalize("NFKC", "".join(without_marks(text))) for text in texts]
    points = _lower_letters()[np.frombuffer("".join(plain).encode("utf-32-le"), dtype="<u4")]
    owner = np.repeat(np.arange(len(plain)), [len(text) for text in plain])
    kept = points != _NOTHING
    return Letters(points[kept], owner[kept], len(plain))


def ngram_hashes(points: np.ndarray, n: int) -> np.ndarray:
    """64-bit hashes of all n-grams of neighbouring code points, uint64 (max(0, len(points) - n + 1),)."""
    windows = len(points) - n + 1
    if windows < 1:
        return np.zeros(0, dtype=np.uint64)
    wide = points.astype(np.uint64)
    hashes = wide[:windows].copy()
    for place in range(1, n):  # a polynomial in an odd constant, modulo 2^64
        hashes *= _ODD
        hashes += wide[place:place + windows]
    return mix(hashes)


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread 64-bit integers evenly, each to another one (the finaliser of SplitMix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@lru_cache(maxsize=1)
def _lower_letters() -> np.ndarray:
    """By code point: that of the small letter, or _NOTHING for all but letters, combining marks and digits."""
    table = np.full(0x110000, _NOTHING, dtype=np.uint32)
    for point in range(_TABLED):
        character = chr(point)
        if unicodedata.category(character)[0] in "LMN":
            lower = character.lower()
            table[point] = ord(lower) if len(lower) == 1 else point
    return table

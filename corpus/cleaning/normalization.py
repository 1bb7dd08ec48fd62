"""The normalized characters of many texts in one array, and hashes of their n-grams: what cleaning compares texts by.

Normalized characters are letters, combining marks and digits after NFKC, in lower case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from corpus.tokenizer import without_special_tokens

_NOTHING = 0  # in the tables: a character that is left out
_TABLED = 0x32000  # the last Han characters lie below; what lies above (variation selectors, private use) is left out
# In the table: not looked up yet, and what no table can tell.
_UNKNOWN, _DEPENDS = 0xFFFFFFFF, 0xFFFFFFFE
_HAN = ((0x3400, 0x4DB5), (0x4E00, 0x9FEF))  # all that were assigned in Unicode 11
_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class NormalizedTexts:
    """The normalized characters of `texts` texts: `points` uint32 (n,), code points, and `owner` int64 (n,), ascending,
    the text that each is of; a text may have none.
    """

    points: np.ndarray
    owner: np.ndarray
    texts: int

    def counts(self) -> np.ndarray:
        """Return the number of characters of each text, int64 (texts,)."""
        return np.bincount(self.owner, minlength=self.texts)


def normalized_characters(texts: Sequence[str]) -> NormalizedTexts:
    """Normalize texts; special tokens written in them ("<|im_start|>") are left out."""
    plain = [without_special_tokens(text) for text in texts]
    points, owner = code_points(plain), owners(plain)
    found = look_up(_table(), points, _UNKNOWN, _normalize)
    depends = found == _DEPENDS
    if depends.any():
        for text in np.unique(owner[depends]).tolist():
            plain[text] = unicodedata.normalize("NFKC", plain[text])
        points, owner = code_points(plain), owners(plain)
        found = look_up(_table(), points, _UNKNOWN, _normalize)
        depends = found == _DEPENDS  # these stand in normalized texts now
        found[depends] = list(map(_lower, points[depends].tolist()))
    kept = found != _NOTHING
    return NormalizedTexts(found[kept], owner[kept], len(plain))


def code_points(texts: Sequence[str]) -> np.ndarray:
    """Return the code points of all texts, one after the other: uint32 (characters,)."""
    return np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")


def owners(texts: Sequence[str]) -> np.ndarray:
    """Return the number of the text for each of its `code_points`: int64 (characters,)."""
    return np.repeat(np.arange(len(texts)), list(map(len, texts)))


def ngram_hashes(points: np.ndarray, n: int) -> np.ndarray:
    """Return 64-bit hashes of all n-grams of neighbouring code points, uint64 (max(0, len(points) - n + 1),)."""
    windows = len(points) - n + 1
    if windows < 1:
        return np.zeros(0, dtype=np.uint64)
    # A polynomial in an odd constant, modulo 2^64: those of twice as many places, or of one more, are made of the last.
    wide = points.astype(np.uint64)
    hashes, size = wide, 1
    for digit in f"{n:b}"[1:]:
        hashes = hashes[:-size] * np.uint64(pow(_ODD, size, 2**64)) + hashes[size:]
        size *= 2
        if digit == "1":
            hashes = hashes[:-1] * np.uint64(_ODD) + wide[size:]
            size += 1
    return mix(hashes)


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread 64-bit integers evenly, each to another one (the finaliser of SplitMix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def look_up(table: np.ndarray, points: np.ndarray, unknown: int, find: Callable[[int], int]) -> np.ndarray:
    """Return what the table holds of each code point; where that is `unknown`, what `find` says, and keep it."""
    found = table.take(points)
    missing = points[found == unknown]
    if len(missing):
        for point in set(missing.tolist()):
            table[point] = find(point)
        found = table.take(points)
    return found


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Map code points to normalized ones, to be filled as characters are met: a corpus has a few thousand different
    ones, and each worker its own table. Most are Han characters of these blocks, which nothing changes.
    """
    table = np.full(0x110000, _UNKNOWN, dtype=np.uint32)
    for first, last in _HAN:
        table[first : last + 1] = np.arange(first, last + 1)
    return table


def _normalize(point: int) -> int:
    """Return what NFKC and lower case make of a code point: _NOTHING where it is left out, _DEPENDS where its
    neighbours have a say or where it becomes several characters.
    """
    character = chr(point)
    first = unicodedata.normalize("NFKD", character)[0]
    if unicodedata.combining(first) or _may_compose(first):
        return _DEPENDS
    # What comes before a character that starts anew, and does not compose, has no part in what becomes of it.
    found = [lower for lower in map(_lower, map(ord, unicodedata.normalize("NFKC", character))) if lower]
    return _DEPENDS if len(found) > 1 else found[0] if found else _NOTHING


def _may_compose(character: str) -> bool:
    """Return whether normalization might join a character to the one before it; also true of a few that it never joins.

    Those are marks, but for the selectors of variants, which follow many an emoji, and the letters that Korean
    syllables are made of. Unicode 16 has vowel signs that are letters (Kirat Rai, U+16D67), so the rare planes are not
    trusted either.
    """
    point = ord(character)
    if unicodedata.category(character)[0] == "M":
        return not 0xFE00 <= point <= 0xFE0F
    return 0x1100 <= point <= 0x11FF or 0x10000 <= point < 0x1F000


@lru_cache(maxsize=_TABLED)
def _lower(point: int) -> int:
    """Return a code point in lower case, or _NOTHING for all but letters, combining marks and digits."""
    character = chr(point)
    if point >= _TABLED or unicodedata.category(character)[0] not in "LMN":
        return _NOTHING
    lower = character.lower()
    return ord(lower) if len(lower) == 1 else point

"""Letters of many texts in one array: the same as normalising every text, and the hashes of their n-grams."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.cleaning.normalization import _may_compose, mix, ngram_hashes, normalized_characters
from corpus.tokenizer import SPECIAL_TOKENS, without_special_tokens

# Joined by normalisation with what stands before them, reordered, taken apart, or made another letter.
ODD = [
    *"éÅﬁ①㍿½…İßΣǅ𝒜Ⅷ㈱ﷺ가각ᄀㄱㅏｶﾞがΩﬀ２Ａ，　 \\n중文",
    "\u0301",
    "\u0327",
    "\u0344",
    "\u1161",
    "\u11a8",
    "\u3099",
    "\u09be",
    "\u0b57",
    "\u0fb2",
    "\u0f71",
    "\u1e9b",
    "\u0323",
    "\ufe0f",
    "\u2f81a",
    "\U0002f800",
    "\U00011127",
    "\U00016d67",
    "\U0001f600",
    "\U000e0100",
    "\ue000",
    "\uffa1",
    "\u115f",
]


def by_definition(text: str) -> list[int]:
    plain = unicodedata.normalize("NFKC", without_special_tokens(text))
    letters = [c for c in plain if unicodedata.category(c)[0] in "LMN" and ord(c) < 0x32000]
    return [ord(c.lower()) if len(c.lower()) == 1 else ord(c) for c in letters]


@given(st.lists(st.lists(st.sampled_from([*ODD, *SPECIAL_TOKENS, "<|", "e", "a", "中"])).map("".join), max_size=5))
def test_letters_are_those_of_the_normalised_text(texts: list[str]) -> None:
    letters = normalized_characters(texts)
    assert letters.texts == len(texts)
    for place, text in enumerate(texts):
        assert letters.points[letters.owner == place].tolist() == by_definition(text)


@pytest.mark.slow
def test_letters_of_every_character_between_two_others() -> None:
    characters = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    texts = [f"e{c}a" for c in characters]
    letters = normalized_characters(texts)
    counts = letters.counts()
    expected = [by_definition(text) for text in texts]
    assert counts.tolist() == list(map(len, expected))
    assert letters.points.tolist() == [point for one in expected for point in one]


def test_no_character_is_joined_to_the_one_before_that_may_not_be() -> None:
    """By the table of Unicode itself, and the rule for Korean syllables, which are not in it."""
    seconds = set()
    for point in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            seconds.add(chr(int(parts[1], 16)))
    assert len(seconds) > 50
    assert all(map(_may_compose, seconds))
    assert all(map(_may_compose, map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)])))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 20))
def test_hashes_of_ngrams_are_those_of_a_polynomial(points: list[int], n: int) -> None:
    odd = 0x9E3779B97F4A7C15
    sums = [
        sum(p * odd ** (n - 1 - k) for k, p in enumerate(points[i : i + n])) % 2**64 for i in range(len(points) - n + 1)
    ]
    assert ngram_hashes(np.array(points, dtype=np.uint32), n).tolist() == mix(np.array(sums, dtype=np.uint64)).tolist()

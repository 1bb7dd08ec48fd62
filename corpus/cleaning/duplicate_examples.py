"""Examples of duplicates for the report: chosen by the first pass, their texts found again by the second."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np

from corpus.cleaning.near_duplicates import NearPairs

EXACT_EXAMPLES = 3
NEAR_EXAMPLES = 10
EXAMPLE_CHARACTERS = 120


class Duplicates:
    """Some documents left out, each with the one kept in its stead; no order of files changes the choice of texts."""

    def __init__(self) -> None:
        self._exact: list[tuple[int, int]] = []  # (minus the digest, place), the smallest digests
        self._near: list[tuple[int, int, float]] = []  # (kept, dropped, similarity)
        self._texts: dict[int, str] = {}

    def add_exact(self, digest: bytes, place: int) -> None:
        """Offer a document that repeats an earlier one."""
        key = -int.from_bytes(digest, "big")
        if all(key != other for other, _ in self._exact):
            heapq.heappush(self._exact, (key, place))
            if len(self._exact) > EXACT_EXAMPLES:
                heapq.heappop(self._exact)

    def add_near(self, pairs: NearPairs) -> None:
        """Choose pairs evenly among those that were found."""
        spread = np.linspace(0, len(pairs.dropped), NEAR_EXAMPLES, endpoint=False).astype(int)
        chosen = np.unique(spread[: len(pairs.dropped)])
        self._near = [(int(pairs.kept[i]), int(pairs.dropped[i]), float(pairs.similarity[i])) for i in chosen]

    def places(self) -> set[int]:
        """The documents whose texts are wanted."""
        return {place for kept, dropped, _ in self._pairs() for place in (kept, dropped)}

    def add_text(self, place: int, text: str) -> None:
        """The text of a wanted document."""
        self._texts[place] = text[:EXAMPLE_CHARACTERS]

    def examples(self) -> list[dict[str, Any]]:
        """The key "examples" of the corpus report: near ones, the least similar first, then exact ones."""
        return [
            {"kept": self._texts[kept], "dropped": self._texts[dropped], "similarity": round(similarity, 4)}
            for kept, dropped, similarity in self._pairs()
        ]

    def _pairs(self) -> Iterator[tuple[int, int, float]]:
        yield from sorted(self._near, key=lambda pair: pair[2])
        for _, place in sorted(self._exact, reverse=True):
            yield place, place, 1.0

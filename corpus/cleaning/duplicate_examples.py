"""Examples of duplicates for the report: chosen by the first pass, their texts found again by the second."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from corpus.cleaning.near_duplicates import NearPairs

EXACT_EXAMPLES = 3
NEAR_EXAMPLES = 10
EXAMPLE_CHARACTERS = 120


class DuplicateExamples:
    """Some dropped documents, each with the one kept in its stead; no order of files changes the choice of texts."""

    def __init__(self) -> None:
        self._exact: dict[bytes, int] = {}  # the smallest digests, each with the place of one of its documents
        self._near: list[tuple[int, int, float]] = []  # (kept, dropped, similarity)
        self._texts: dict[int, str] = {}

    def add_exact(self, digest: bytes, place: int) -> None:
        """Offer a document that repeats an earlier one."""
        self._exact.setdefault(digest, place)
        self._exact = {key: self._exact[key] for key in heapq.nsmallest(EXACT_EXAMPLES, self._exact)}

    def add_near(self, near: NearPairs) -> None:
        """Choose pairs evenly among those that were found, and sort them, the least similar first."""
        chosen = np.unique(np.linspace(0, len(near.dropped), NEAR_EXAMPLES, endpoint=False).astype(int))
        pairs = [(near.kept[i], near.dropped[i], near.similarity[i]) for i in chosen if i < len(near.dropped)]
        self._near = sorted(((int(k), int(d), float(s)) for k, d, s in pairs), key=lambda pair: pair[2])

    def places(self) -> set[int]:
        """Return the documents whose texts are wanted, by their places in the corpus."""
        return {*self._exact.values(), *(place for pair in self._near for place in pair[:2])}

    def add_text(self, place: int, text: str) -> None:
        """Add the text of a wanted document."""
        self._texts[place] = text[:EXAMPLE_CHARACTERS]

    def pairs(self) -> list[dict[str, Any]]:
        """Return the examples for the report: near ones, then exact ones."""
        exact = [(self._exact[digest], self._exact[digest], 1.0) for digest in sorted(self._exact)]
        return [
            {"kept": self._texts[kept], "dropped": self._texts[dropped], "similarity": round(similarity, 4)}
            for kept, dropped, similarity in (*self._near, *exact)
        ]

"""Which split a document is assigned to: decided by its text alone, so by no order, no run and no file name."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from hashlib import blake2b

DIGEST_BYTES = 16
_CUT_BYTES = 8

# The assignment of a document; one byte each. All but two say why it is left out.
DUPLICATE, TRAIN, VAL, NEAR_DUPLICATE, REPETITIVE, IN_VAL = range(6)
LEFT_OUT = {DUPLICATE: "exact", NEAR_DUPLICATE: "near", REPETITIVE: "repetition", IN_VAL: "overlap"}


def document_digest(encoded: bytes) -> bytes:
    """Return the 16 bytes that stand for a document, given as UTF-8; in practice no two different ones share them."""
    return blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def val_cut(val_fraction: float) -> bytes:
    """Return what the digests of validation documents sort below; 0 <= val_fraction < 1."""
    return int(val_fraction * 2 ** (8 * _CUT_BYTES)).to_bytes(_CUT_BYTES, "big")


class HashSubset:
    """The documents with the smallest digests that together reach `budget` bytes: a sample that no order can change.

    Holds little more than `budget` bytes of text.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 0
        self._texts: dict[bytes, tuple[str, int]] = {}
        self._heap: list[int] = []  # digests as negative numbers: the largest digest on top

    @property
    def ceiling(self) -> bytes:
        """Digests above this cannot enter any more."""
        if self.size < self.budget:
            return b"\xff" * DIGEST_BYTES
        return self._largest() if self._heap else b""

    def add(self, digest: bytes, text: str, size: int) -> None:
        """Offer a document of `size` bytes; a repeated one changes nothing."""
        if digest > self.ceiling or digest in self._texts:
            return
        heapq.heappush(self._heap, -int.from_bytes(digest, "big"))
        self._texts[digest] = (text, size)
        self.size += size
        while self.size - self._texts[self._largest()][1] >= self.budget:
            self.size -= self._texts.pop(self._largest())[1]
            heapq.heappop(self._heap)

    def discard(self, digests: Iterable[bytes]) -> None:
        """Take documents out, as far as they are in. Others that were offered before do not come back."""
        for digest in digests:
            self.size -= self._texts.pop(digest, ("", 0))[1]
        self._heap = [-int.from_bytes(digest, "big") for digest in self._texts]
        heapq.heapify(self._heap)

    def texts(self) -> list[str]:
        """Return the documents in the order of their digests."""
        return [self._texts[digest][0] for digest in sorted(self._texts)]

    def _largest(self) -> bytes:
        return (-self._heap[0]).to_bytes(DIGEST_BYTES, "big")

    def __len__(self) -> int:
        return len(self._texts)

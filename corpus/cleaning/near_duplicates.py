"""Near duplicates: texts that differ in a few characters, in script (traditional or simplified), in layout or case.

A text counts as the set of the 3-grams of its normalized characters. Two texts are near if the Jaccard similarity of
their sets, estimated by MinHash (Broder 1997), is at least 0.5: about one character in eight replaced. Candidates are
found by banding (locality sensitive hashing), so that nothing is compared with everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without types)

from corpus.cleaning.normalization import NormalizedTexts, mix, ngram_hashes
from corpus.split import DIGEST_BYTES

# Measured by benchmarks/dedup.py. Longer n-grams lose edited texts, shorter ones take two texts of a subject for one.
NGRAM = 3
THRESHOLD = 0.5
HASHES = 128
BANDS = 32  # of four hashes each: a pair at the threshold shares one with a probability of 87 %, at 0.6 of 99 %
SEED = 20
# A band that more texts than this share tells nothing about them; only so many are compared through it.
MOST_PER_BUCKET = 100
SIGNATURE_TYPE = np.dtype("<u2")
_NO_BUCKET = -1


def signatures(normalized: NormalizedTexts) -> np.ndarray:
    """Return the lower halves of every text's MinHash values, (texts, HASHES) of SIGNATURE_TYPE.

    They are zeros for a text without characters. A text shorter than an n-gram is near to those alone that have the
    same characters.
    """
    points, owner = _padded(normalized)
    hashes = ngram_hashes(points, NGRAM)
    owner_of_hash = owner[: len(hashes)]
    whole = owner_of_hash == owner[len(owner) - len(hashes) :]
    counts = np.bincount(owner_of_hash[whole], minlength=normalized.texts)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(mix(hashes[whole]), offsets, HASHES, SEED)
    rows = np.array(matrix.to_rows(), dtype=np.uint32).reshape(normalized.texts, HASHES)
    rows[counts == 0] = 0
    return rows.astype(SIGNATURE_TYPE)


def simplified_characters(normalized: NormalizedTexts) -> np.ndarray:
    """Return the code points of texts with every Han character in its simplified form, uint32 (n,)."""
    return _simplified()[normalized.points]


def _padded(normalized: NormalizedTexts) -> tuple[np.ndarray, np.ndarray]:
    """Return simplified code points and their owners, short texts filled up to the length of an n-gram."""
    counts = normalized.counts()
    sizes = np.where(counts > 0, np.maximum(counts, NGRAM), 0)
    inserted = np.cumsum(sizes - counts) - (sizes - counts)  # before each text
    points = np.zeros(sizes.sum(), dtype=np.uint32)
    points[np.arange(len(normalized.points)) + inserted[normalized.owner]] = simplified_characters(normalized)
    return points, np.repeat(np.arange(normalized.texts), sizes)


@lru_cache(maxsize=1)
def _simplified() -> np.ndarray:
    """Map code points: Han characters to their simplified forms, anything else to itself."""
    from opencc import OpenCC  # only --dedup near pays for loading it

    table = np.arange(0x110000, dtype=np.uint32)
    blocks = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x323B0))
    points = np.concatenate([np.arange(*block, dtype=np.uint32) for block in blocks])
    converted = OpenCC("t2s").convert("\n".join(map(chr, points))).split("\n")
    table[points] = [ord(character) for character in converted]
    return table


@dataclass(frozen=True)
class NearPairs:
    """Dropped texts and those kept in their stead, by their places in the corpus, with their estimated similarity.

    Arrays of one length: `kept` and `dropped` int64, `similarity` float64 from THRESHOLD to 1; `digests` are those of
    the dropped texts.
    """

    kept: np.ndarray
    dropped: np.ndarray
    similarity: np.ndarray
    digests: list[bytes]


class NearIndex:
    """The signatures of a corpus: 281 bytes a text, and 380 to 720 more while `resolve` runs, by how alike they are.

    Texts are taken in the order of their digests and kept unless a text that was kept before is near. So the choice
    depends on no order of files, every dropped text is near to one that is kept, and what is kept has no near pair
    that banding finds: a second pass drops nothing.
    """

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._digests = bytearray()
        self._places: list[np.ndarray] = []
        self._preferred: list[np.ndarray] = []

    def add(self, rows: np.ndarray, digests: Sequence[bytes], places: Sequence[int], preferred: bool) -> None:
        """Take in texts by their signatures, digests (of DIGEST_BYTES each) and places in the corpus.

        `preferred` ones are kept before all others. Texts without characters are near to none.
        """
        some = np.flatnonzero(rows.any(axis=1))
        self._rows.append(rows[some])
        self._digests += b"".join(digests[i] for i in some.tolist())
        self._places.append(np.asarray(places, dtype=np.int64)[some])
        self._preferred.append(np.full(len(some), preferred))

    def resolve(self) -> NearPairs:
        """Choose what is dropped. The index is empty afterwards."""
        rows, places, order = self._take_all()
        digests, self._digests = self._digests, bytearray()
        pair = np.dtype([("dropped", np.int64), ("kept", np.int64), ("similarity", np.float64)])
        found = np.fromiter(_near_earlier(rows, order), dtype=pair)
        cut = [bytes(digests[text * DIGEST_BYTES : (text + 1) * DIGEST_BYTES]) for text in found["dropped"].tolist()]
        return NearPairs(places[found["kept"]], places[found["dropped"]], found["similarity"], cut)

    def _take_all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all signatures in one array, the places of the texts, and the order in which they are to be taken."""
        rows = np.empty((sum(map(len, self._rows)), HASHES), dtype=SIGNATURE_TYPE)
        end = len(rows)
        while self._rows:  # each part is freed as soon as it is copied
            part = self._rows.pop()
            rows[end - len(part) : end] = part
            end -= len(part)
        digests = np.frombuffer(self._digests, dtype=">u8").reshape(-1, DIGEST_BYTES // 8)
        places = np.concatenate([np.zeros(0, dtype=np.int64), *self._places])
        later = ~np.concatenate([np.zeros(0, dtype=bool), *self._preferred])
        order = np.lexsort((places, digests[:, 1], digests[:, 0], later))
        self._places, self._preferred = [], []
        return rows, places, order


def _near_earlier(rows: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield texts that are near to one kept before, in `order`: (text, the most similar one kept, their similarity)."""
    buckets = _buckets(rows)
    shared = (buckets != _NO_BUCKET).any(axis=1)
    kept: dict[int, list[int]] = {}  # by bucket, as ranks in `order`
    for rank in np.flatnonzero(shared[order]).tolist():
        text = order[rank]
        own = buckets[text]
        lists = [kept.setdefault(bucket, []) for bucket in own[own != _NO_BUCKET].tolist()]
        candidates = sorted({other for ranks in lists for other in ranks})
        if candidates:
            others = order[candidates]
            similarity = (rows[others] == rows[text]).mean(axis=1)
            best = int(np.argmax(similarity))
            if similarity[best] >= THRESHOLD:
                yield int(text), int(others[best]), float(similarity[best])
                continue
        for ranks in lists:
            if len(ranks) < MOST_PER_BUCKET:
                ranks.append(rank)


def _buckets(rows: np.ndarray) -> np.ndarray:
    """Return bucket numbers by text and band, _NO_BUCKET where no other text is in it: int32 (texts, BANDS)."""
    keys = rows.view("<u8")  # the four values of a band as one number
    assert keys.shape[1] == BANDS
    result = np.full(keys.shape, _NO_BUCKET, dtype=np.int32)
    if not len(rows):
        return result
    first = 0
    for band in range(BANDS):
        order = np.argsort(keys[:, band])
        ascending = keys[order, band]
        same = ascending[1:] == ascending[:-1]
        together = np.concatenate((same, [False])) | np.concatenate(([False], same))
        number = np.cumsum(np.concatenate(([True], ~same)) & together) - 1
        result[order[together], band] = first + number[together]
        first += int(number[-1]) + 1 if together.any() else 0
    return result

"""Whole documents packed into rows, for a corpus in which only some tokens are targets.

A row of a pretraining corpus is cut from the stream wherever it falls. A conversation that is cut loses its question,
so here documents are laid into rows whole, the longest first, each into the fullest row that has room for it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedRows:
    """Which parts of a stream lie in which row, and what had to be done to documents that are longer than a row.

    Row r is the parts first[r] to first[r + 1] - 1; part i is `lengths[i]` ids of the stream from `starts[i]` on.
    `targets[r]` counts the targets of row r, never 0. `split` documents were cut between turns (plain text: anywhere),
    `shortened` lost the end of an answer, `left_out` parts have no target within a row's length.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    targets: np.ndarray
    split: int
    shortened: int
    left_out: int

    def __len__(self) -> int:
        return len(self.targets)

    def parts(self, row: int) -> list[tuple[int, int]]:
        """Return (start, length) of each part of a row, in their order."""
        own = slice(int(self.first[row]), int(self.first[row + 1]))
        return list(zip(self.starts[own].tolist(), self.lengths[own].tolist(), strict=True))


def pack_rows(
    ids: np.ndarray, mask: np.ndarray, *, bos_id: int, eos_id: int, seq_len: int, edges: Sequence[int] = ()
) -> PackedRows:
    """Lay the documents of a stream into rows of `seq_len` + 1 ids; `mask` (uint8, like ids) is 1 on targets.

    `edges` are the places between the sources of a mixture: no row has documents of two.
    """
    cutter = _Cutter(ids, mask, bos_id, eos_id, seq_len)
    parts = np.array(list(cutter.parts()), dtype=np.int64).reshape(-1, 2)
    counted = _targets(mask, parts)
    left_out = int((counted == 0).sum())
    parts, counted = parts[counted > 0], counted[counted > 0]
    rows: list[np.ndarray] = []
    for own in np.split(np.arange(len(parts)), np.searchsorted(parts[:, 0], np.asarray(edges, dtype=np.int64))):
        headless = np.flatnonzero(ids[parts[own, 0]] != bos_id).tolist()
        rows += [own[row] for row in best_fit(parts[own, 1], seq_len + 1, alone=headless)]
    order = np.concatenate([np.zeros(0, np.int64), *rows])
    first = np.cumsum([0, *map(len, rows)])
    targets = np.add.reduceat(counted[order], first[:-1]) if rows else np.zeros(0, np.int64)
    starts, lengths = parts[order, 0], parts[order, 1]
    return PackedRows(starts, lengths, first, targets, cutter.split, cutter.shortened, left_out)


def best_fit(lengths: np.ndarray, capacity: int, alone: Sequence[int] = ()) -> list[list[int]]:
    """Return the items of each bin, each bin at most `capacity` full: best-fit decreasing, ties by number.

    Items of `alone` are each the first of a bin: what has no BOS must not follow another document.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free space -> bins that have it
    spaces: list[int] = []  # the keys in ascending order
    headless = set(alone)
    others = (item for item in np.argsort(-lengths, kind="stable").tolist() if item not in headless)
    for item in (*alone, *others):
        length = int(lengths[item])
        place = len(spaces) if item in headless else bisect.bisect_left(spaces, length)
        if place == len(spaces):
            bins.append([])
            chosen, space = len(bins) - 1, capacity
        else:
            space = spaces[place]
            chosen = with_room[space].pop()
            if not with_room[space]:
                del with_room[space], spaces[place]
        bins[chosen].append(item)
        if left := space - length:
            if left not in with_room:
                with_room[left] = []
                bisect.insort(spaces, left)
            with_room[left].append(chosen)
    return bins


def _targets(mask: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the number of targets of each part; its first id, which nothing comes before, is none."""
    if not len(parts):
        return np.zeros(0, np.int64)
    borders = np.stack((parts[:, 0] + 1, parts[:, 0] + parts[:, 1]), axis=1).ravel()
    return np.add.reduceat(np.append(mask, np.uint8(0)), borders, dtype=np.int64)[::2]


class _Cutter:
    """Goes through the documents of a stream and cuts those that are longer than a row."""

    def __init__(self, ids: np.ndarray, mask: np.ndarray, bos_id: int, eos_id: int, seq_len: int) -> None:
        self.mask, self.seq_len = mask, seq_len
        self.split = self.shortened = 0
        self.turns, self.ends = np.flatnonzero(ids == bos_id), np.flatnonzero(ids == eos_id) + 1
        after_eos = np.concatenate(([True], ids[:-1] == eos_id)) if len(ids) else np.zeros(0, bool)
        begins = self.turns[after_eos[self.turns]]
        self.edges = [*begins.tolist(), len(ids)] if len(begins) else []

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of every document, or of what one that is too long is cut into."""
        for start, end in zip(self.edges, self.edges[1:], strict=False):
            if end - start <= self.seq_len + 1:
                yield start, end - start
            elif self.mask[start + 1]:  # in a conversation the name of a role comes first, which is no target
                self.split += 1
                # neighbours share an id, so that every id but the first is a target once
                yield from ((at, min(self.seq_len + 1, end - at)) for at in range(start, end - 1, self.seq_len))
            else:
                yield from self._by_turns(start, end)

    def _by_turns(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a conversation: as many exchanges as fit; of a longer one, its beginning."""
        exchanges = [*self._exchanges(start, end), end]
        self.split += len(exchanges) > 2
        at = exchanges[0]
        for here, following in itertools.pairwise(exchanges):
            if self._end(following) - at > self.seq_len + 1 and here > at:
                yield at, self._end(here) - at
                at = here
            if self._end(following) - at > self.seq_len + 1:
                self.shortened += 1
                yield at, self.seq_len + 1
                at = following
        if at < end:
            yield at, end - at

    def _end(self, before: int) -> int:
        """Return where the last turn before a place ends: a line break after it would hide the next document's BOS."""
        return int(self.ends[np.searchsorted(self.ends, before, side="right") - 1])

    def _exchanges(self, start: int, end: int) -> Iterator[int]:
        """Yield where questions begin: turns without a target that follow one with targets, and the first turn."""
        turns = self.turns[(self.turns >= start) & (self.turns < end)].tolist()
        answered = True
        for turn, following in zip(turns, [*turns[1:], end], strict=True):
            answers = bool(self.mask[turn:following].any())
            if (answered and not answers) or turn == start:
                yield turn
            answered = answers

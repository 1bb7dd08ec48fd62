"""A mixture of sources by weights: how it is written, which rows are whose, and how many of each an epoch takes.

Weights say what share of the training rows comes from a source, whatever its size: nothing is dropped or copied in the
shards, where the sources stand one after the other. A source that is smaller than its share is read more often.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError

_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?|\.\d+)")


def split_weights(paths: Sequence[Path]) -> tuple[list[Path], tuple[float, ...]]:
    """Return paths without their weights ("a.jsonl:0.7"), and the weights scaled to a sum of 1, none if none is given.

    A path that exists with its colon is taken as it is. UserError if only some have a weight.
    """
    found = [None if path.exists() else _WEIGHTED.fullmatch(str(path)) for path in paths]
    if not any(found):
        return list(paths), ()
    weights = [float(match[2]) if match else 0.0 for match in found]
    if without := [str(path) for path, weight in zip(paths, weights, strict=True) if not weight]:
        raise UserError(f"{', '.join(without)}: give every source a weight above 0, such as {paths[0]}, or none")
    total = math.fsum(weights)
    return [Path(match[1]) for match in found if match], tuple(weight / total for weight in weights)


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source in the training split, and its weight."""

    name: str
    first: int
    count: int
    weight: float


def rows_of_epoch(sources: Sequence[SourceRows], epoch: int, seed: int) -> np.ndarray:
    """Return the rows of an epoch, source by source, int64 (rows,): as many as there are, divided by the weights.

    Every source goes through its own rows in an order of its own, shuffled anew each time, and goes on in an epoch
    where the one before stopped.
    """
    shares = counts_of_epoch(sources)
    parts = []
    for number, (source, count) in enumerate(zip(sources, shares, strict=True)):
        start = epoch * count
        for turn in range(start // source.count, (start + count - 1) // source.count + 1 if count else 0):
            order = np.random.Generator(np.random.PCG64([seed, turn, number])).permutation(source.count)
            offset = turn * source.count
            parts.append(source.first + order[max(0, start - offset) : start + count - offset])
    return np.concatenate(parts)


def counts_of_epoch(sources: Sequence[SourceRows]) -> list[int]:
    """Return how many rows of each source an epoch takes: together as many as there are, by the largest remainders."""
    total = sum(source.count for source in sources)
    exact = [source.weight * total for source in sources]
    counts = [math.floor(share) for share in exact]
    remainders = sorted(range(len(sources)), key=lambda i: (counts[i] - exact[i], i))
    for i in remainders[: total - sum(counts)]:
        counts[i] += 1
    return counts

"""The order in which training rows are seen: one endless stream of shuffled epochs, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from corpus.mixture import SourceRows, rows_of_epoch
from corpus.shards import MaskedStream, TokenStream
from model.loss import IGNORED


class SampleStream:
    """Turns the number of a sample in a run into a row of the corpus.

    Epoch e is a permutation seeded by (seed, e), of all rows or of those that a mixture takes of its `sources`. So the
    order depends neither on the number of ranks nor on where a run was interrupted, and no partial batch is thrown away
    at an epoch's end.
    """

    def __init__(self, rows: int, seed: int, sources: Sequence[SourceRows] = ()) -> None:
        if rows < 1:
            raise ValueError("a stream needs at least one row")
        self.rows, self.seed, self.sources = rows, seed, sources
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, sample: int) -> int:
        epoch, place = divmod(sample, self.rows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.rows)
            if self.sources:
                self._order = rows_of_epoch(self.sources, epoch, self.seed)[self._order]
        return int(self._order[place])

    def micro_batches(
        self, batch: int, rank: int, *, micro_batch: int, accumulation: int, world_size: int
    ) -> list[list[int]]:
        """Return the rows of one rank's micro-batches; over the ranks they tile global batch number `batch`."""
        starts = [((batch * accumulation + i) * world_size + rank) * micro_batch for i in range(accumulation)]
        return [[self[sample] for sample in range(start, start + micro_batch)] for start in starts]


def tensors(
    stream: TokenStream, rows: list[int], seq_len: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (inputs, targets), both (B, seq_len) int64; targets are the inputs shifted by one, or IGNORED.

    The inputs stay in the host's memory, where the network counts documents before it sends them to its device.
    """
    ids, counted = torch.from_numpy(stream.batch(rows, seq_len)), stream.counted(rows, seq_len)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if counted is not None:  # not in place: of a single row, inputs and targets are views of the same ids
        targets = targets.masked_fill(torch.from_numpy(~counted), IGNORED)
    if device.type == "cuda":
        inputs, targets = inputs.pin_memory(), targets.pin_memory().to(device, non_blocking=True)
    return inputs, targets


def divisor(stream: MaskedStream, micro_batches: Sequence[Sequence[int]], seq_len: int) -> float:
    """Return what the summed loss of each of these micro-batches is divided by.

    Where only some targets count, micro-batches have different numbers of them. Dividing all by the mean number makes
    the mean over micro-batches (of every rank, all accumulated ones) the mean over all targets that count.
    """
    return sum(stream.targets(rows, seq_len) for rows in micro_batches) / len(micro_batches)

"""The rows on which validation loss is measured: training and diagnosis must take the same ones to be comparable."""

from __future__ import annotations

import numpy as np

from corpus.shards import TokenStream


def evaluation_rows(num_rows: int, tokens: int, seq_len: int) -> list[int]:
    """Return rows with about `tokens` tokens (0: all rows) spread evenly over the split, the same at every call."""
    count = num_rows if tokens == 0 else min(num_rows, max(1, tokens // seq_len))
    return np.linspace(0, num_rows, count, endpoint=False).astype(int).tolist()


def measured_rows(stream: TokenStream, tokens: int, seq_len: int) -> tuple[list[int], int]:
    """Return the rows of a split as `evaluation_rows` chooses them, and their length.

    That is `seq_len`, or all that a split has which is shorter than such a row; one of fewer than two tokens has none.
    """
    length = min(seq_len, max(1, len(stream) - 1))
    return evaluation_rows(stream.num_rows(length), tokens, length), length

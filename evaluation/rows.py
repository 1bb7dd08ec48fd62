"""Which rows of a split a loss is measured on: training and diagnosis must take the same ones to be compared."""

from __future__ import annotations

import numpy as np


def evaluation_rows(total: int, wanted_tokens: int, seq_len: int) -> list[int]:
    """Rows spread evenly over the split, the same at every evaluation; all of them for `wanted_tokens` = 0."""
    wanted = total if wanted_tokens == 0 else min(total, max(1, wanted_tokens // seq_len))
    return np.linspace(0, total, wanted, endpoint=False).astype(int).tolist()

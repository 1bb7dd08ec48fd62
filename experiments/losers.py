"""When a run is given up because it is far behind (`sweep.py --stop_losers`).

The rule: at two evaluations in a row, later than EARLY of the way of the finished runs, its validation loss is more
than the given share above that of the best finished run at the same tokens. A learning rate that starts slowly and
ends well is the price of any such rule; the share says how much of it is paid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.run_figures import Point

EARLY = 0.2
IN_A_ROW = 2


def is_behind(curve: Sequence[Point], finished: Sequence[Sequence[Point]], share: float) -> bool:
    """Return whether the rule gives a run up; curves are (tokens, validation loss)."""
    references = [reference for reference in finished if len(reference) > 1]
    if not references or len(curve) < IN_A_ROW:
        return False
    start = EARLY * max(reference[-1][0] for reference in references)
    for tokens, loss in curve[-IN_A_ROW:]:
        best = _best_at(tokens, references)
        if tokens < start or best is None or loss <= (1 + share) * best:
            return False
    return True


def _best_at(tokens: float, references: Sequence[Sequence[Point]]) -> float | None:
    """Return the lowest loss of the references that have come as far."""
    found = [
        float(np.interp(tokens, [x for x, _ in reference], [loss for _, loss in reference]))
        for reference in references
        if reference[-1][0] >= tokens
    ]
    return min(found, default=None)

"""What a rule returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnosis.measurements import Measurements

Reasons = dict[str, dict[str, Any]]
"""By the name of a sentence under "reasons" in report/locales/: the values that are filled in."""


@dataclass(frozen=True)
class Cause:
    """A cause with the measurements that speak for it. The one with the highest `confidence` is to be fixed first."""

    id: str
    confidence: float
    reasons: Reasons


Rule = Callable[[Measurements], Cause | None]

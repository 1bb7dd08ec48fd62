"""Rules that explain a bad model: each looks at the Measurements and returns a Cause or None.

To add a rule, write it in the module of its subject with its thresholds and their reasons above it, list it in
verdict.py, and add its texts to report/locales/en.json and zh.json: "causes" holds the title and what to do,
"reasons" a sentence for each measurement. A rule that lacks a measurement returns None.
"""

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

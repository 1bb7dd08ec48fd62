"""How long the ranks wait for each other before one of them counts as hung, in seconds."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Timeouts:
    """Seconds between heartbeats (`beat`) and between checks (`check`), and until a rank counts as hung or stuck.

    `first` is the timeout of anything done for the first time; `linger` is how long a failure stays readable; `meet` is
    how long the ranks wait for one that does not come.
    """

    beat: float = 1.0
    check: float = 0.5
    hung: float = 40.0
    stuck: float = 40.0
    first: float = 1800.0
    linger: float = 2.0
    meet: float = 300.0

    @classmethod
    def from_environment(cls) -> Timeouts:
        """Read BUFUDU_WATCHDOG, such as `hung=120 stuck=300`; what it leaves out keeps its default."""
        names = {field.name for field in fields(cls)}
        given = {}
        for name, _, value in (word.partition("=") for word in os.environ.get("BUFUDU_WATCHDOG", "").split()):
            with suppress(ValueError):
                given |= {name: float(value)} if name in names else {}
        return cls(**given)

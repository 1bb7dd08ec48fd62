"""Requests to stop: a signal, or the time limit. The loop finishes its step, saves, and ends with status 0."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopRequest:
    """`wanted` turns true once; each rank looks at its own and they agree in the loop."""

    def __init__(self, started: float, time_limit: float | None) -> None:
        self.deadline = None if time_limit is None else started + time_limit
        self.reason: str | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGINT (Ctrl-C, Kaggle's interrupt) as requests."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = f"stopped by {signal.Signals(number).name}"

    @property
    def seconds_left(self) -> float | None:
        """Until the time limit; None without one."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def wanted(self) -> bool:
        """Whether this rank has a reason to stop."""
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "time limit reached"
        return self.reason is not None

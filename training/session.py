"""One session of a run on one rank: what it does now, how long things take, whether it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from training.checkpointing.run_state import RunState
from training.processes.process_group import any_rank
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog

# Of the longest save so far, and of the longest step: it is asked in the middle of a step, and then of the next one
_SAVE_MARGIN, _STEP_MARGIN = 1.5, 1.5
_ENDING_SECONDS = 3.0  # to sum up and to leave


class Session:
    """Lasts from the start of the training loop to its end; `show` displays what is done beside training."""

    def __init__(
        self, stop: StopRequest, watchdog: Watchdog, device: torch.device, show: Callable[[str], None], state: RunState
    ) -> None:
        self.stop, self.watchdog, self.device, self.show = stop, watchdog, device, show
        self.has_stepped = False
        self.stopping: bool | None = None  # whether any rank is asked to stop, as all of them know; None before a step
        self.slowest = 0.0  # seconds of a part that does not end early when it is asked to: a step, a sample
        self._earlier_seconds = state.wall_seconds  # of other sessions
        self.begin(state)

    def begin(self, state: RunState) -> None:
        """Note where and when the first step is, here or after going back to a checkpoint."""
        self._began = state.step, time.monotonic()

    def now(self, activity: str, at_least: float = 0.0) -> None:
        """Say what this rank does: to the watchdog, which gives it `at_least` so many seconds, and to the user."""
        self.watchdog.progress.tick(activity, at_least)
        if activity != "training":
            self.show(activity)

    def before_micro_batch(self) -> None:
        """Say that this rank trains; the first step of a session may take long, because it compiles and allocates."""
        self.now("training", 0.0 if self.has_stepped else self.watchdog.timeouts.first)

    def took(self, seconds: float) -> None:
        """Note how long a part took that does not end early."""
        self.slowest = max(self.slowest, seconds)

    def wants_to_stop(self, save_seconds: float) -> bool:
        """Return whether this rank is asked to stop.

        The time limit leaves time for what is under way and for a save after it.
        """
        self.watchdog.progress.tick(self.watchdog.progress.activity)
        self.stop.reserve(_SAVE_MARGIN * save_seconds + _STEP_MARGIN * self.slowest + _ENDING_SECONDS)
        return self.stop.wanted

    def asked_to_stop(self, save_seconds: float) -> bool:
        """Return whether any rank is asked to stop; collective."""
        self.agreed(any_rank(self.wants_to_stop(save_seconds), self.device))
        return bool(self.stopping)

    def agreed(self, stopping: bool) -> None:
        """Note what a collective has said of all ranks, which are alive then."""
        self.stopping = stopping
        self.watchdog.progress.collectives += 1

    def reason(self) -> str:
        """Return why the run is asked to stop."""
        return self.stop.reason or self.watchdog.stop_reason() or "another process was asked to stop"

    def note_times(self, state: RunState) -> None:
        """Write into the state how long all sessions and the steps of this one took."""
        state.wall_seconds = self._earlier_seconds + self.stop.elapsed
        if (steps := state.step - self._began[0]) > 0:
            state.pace = (time.monotonic() - self._began[1]) / steps

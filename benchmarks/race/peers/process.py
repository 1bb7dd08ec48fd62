"""A command watched from outside, and the clock that is read off its lines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from common.errors import UserError
from stress.chaos.session import inherited_environment

_TAIL = 12  # last lines of a command that failed, for the message


def follow(
    command: Sequence[object],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, object],
    on_line: Callable[[str, float], None] = lambda line, seconds: None,
) -> float:
    """Run `command` in `folder`, its output into `log`, and return its seconds.

    `on_line` gets every line as it comes, with the seconds since the start. UserError with the last lines if the
    command fails; it is ended with all its children if this process is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: list[str] = []
    started = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=inherited_environment() | {name: str(value) for name, value in environment.items()},
    )
    try:
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout or ():
                seconds = time.monotonic() - started
                file.write(line)
                tail = [*tail, line.rstrip()][-_TAIL:]
                on_line(line, seconds)
        status = process.wait()
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        raise UserError(
            f"{' '.join(map(str, command))[:200]} ended with status {status}; its last lines (all of them "
            f"are in {log}):\n" + "\n".join(tail)
        )
    return time.monotonic() - started


@dataclass(frozen=True)
class Clock:
    """Training seconds, from marks (step, seconds since the command's start) that were seen as those steps ended.

    `pauses` are the steps that a save or an evaluation followed. What an interval with a pause in it takes beyond the
    usual time of its steps is not training. The first step's start cannot be seen; it is put the usual time of a step
    before the step's end, so a first step that took longer lengthens the start-up.
    """

    marks: Sequence[tuple[int, float]]
    pauses: Collection[int] = ()

    def __post_init__(self) -> None:
        if len(self.marks) < 2:
            raise ValueError("a clock needs at least two marks")

    def _intervals(self) -> Iterator[tuple[int, int, float, bool]]:
        """(after step, until step, seconds, whether a pause lies in it)."""
        for (first, before), (last, after) in zip(self.marks, self.marks[1:], strict=False):
            yield first, last, after - before, any(first <= step < last for step in self.pauses)

    @cached_property
    def step_seconds(self) -> float:
        """Median over the intervals without a pause; over all if each has one."""
        spans = [(seconds / (last - first), paused) for first, last, seconds, paused in self._intervals()]
        return median([span for span, paused in spans if not paused] or [span for span, _ in spans])

    @property
    def start_up(self) -> float:
        """Seconds from the command's start to that of its first step."""
        step, seconds = self.marks[0]
        return max(0.0, seconds - step * self.step_seconds)

    @property
    def paused(self) -> float:
        """Seconds of all pauses between the first mark and the last."""
        return self.marks[-1][1] - self.start_up - self.training(self.marks[-1][0])

    def training(self, step: float) -> float:
        """Seconds from the start of the first step to the end of `step`, pauses left out; linear between marks."""
        seconds = min(step, self.marks[0][0]) * self.step_seconds
        for first, last, taken, paused in self._intervals():
            if step > first:
                spent = min(taken, self.step_seconds * (last - first)) if paused else taken
                seconds += spent * (min(step, last) - first) / (last - first)
        return seconds

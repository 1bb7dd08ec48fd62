"""What the user sees, kept apart from what the libraries print.

`Console.take_over` keeps the terminal for our own lines and sends file descriptors 1 and 2, to which DeepSpeed,
NCCL, compilers and Python's warnings write, into the run's log file. Neither can fail: a terminal that was closed or
a full disk loses lines, not the run.
"""

from __future__ import annotations

import io
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from common.errors import UserError


class _Forgiving(io.FileIO):
    """A file that takes everything, whether or not there is room for it."""

    def write(self, data: Any) -> int:
        """Always all of it."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def forgiving(descriptor: int) -> TextIO:
    """Text for a file descriptor that may be full, or closed at its other end; it is not closed with it."""
    raw = _Forgiving(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)


class Console:
    """The user's terminal; only rank 0 speaks, except to say that a rank has failed."""

    def __init__(self, rank: int, stream: TextIO | None = None) -> None:
        self.rank = rank
        self.stream = stream or sys.stdout
        self.log_file: Path | None = None

    def take_over(self, log_file: Path) -> None:
        """From here on everything that is not said through this object goes to `log_file`."""
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise UserError(
                f"{log_file} cannot be written ({error.strerror}): make room or make it writable, or "
                "give another --output"
            ) from None
        self.stream.flush()
        self.stream = forgiving(os.dup(self.stream.fileno()))
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        sys.stdout, sys.stderr = forgiving(1), forgiving(2)  # Python would raise on a full disk, even at its exit
        self.log_file = log_file
        print(f"--- rank {self.rank}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)

    def say(self, text: str) -> None:
        """One fact, one line; safe while a progress bar is on the screen."""
        if self.rank == 0:
            tqdm.write(text, file=self.stream)
            self.stream.flush()

    def fail(self, text: str) -> None:
        """An error, from whichever rank has one."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def last_words(self, text: str) -> None:
        """A line from a process that is about to leave; safe in a signal handler and beside a thread that writes."""
        with suppress(OSError, ValueError):
            after_bar = "\n" if self.interactive else ""
            os.write(self.stream.fileno(), f"{after_bar}{text}\n".encode())

    @property
    def interactive(self) -> bool:
        """Whether a progress bar can move on this terminal."""
        return self.rank == 0 and self.stream.isatty()

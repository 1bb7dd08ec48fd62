"""What the user sees: on any terminal, with no character that it would obey, and apart from what the libraries print.

`Console.redirect_libraries` keeps the terminal for our own lines and sends file descriptors 1 and 2, to which
DeepSpeed, NCCL, compilers and Python's warnings write, into the run's log file. Neither can fail: a terminal that was
closed or a full disk loses lines, not the run.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from common.errors import UserError

# What a terminal obeys (but for tabs and ends of lines), what turns the direction of text, and halves of characters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def spell_out(text: str) -> str:
    """Return the text of a corpus or a model with control characters as escapes, which are right in JSON, too."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def prepare_streams() -> None:
    """Let standard output take any text: a character that the terminal lacks becomes "?", and a closed one is no error.

    What is closed is opened on the null device, or a file of ours would get its number and what is printed into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _lossy_stream(1)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:
        sys.stderr = _lossy_stream(2)


def takes_any_character(stream: TextIO) -> bool:
    """Return whether a stream's encoding has every character."""
    return (stream.encoding or "utf-8").lower().startswith("utf")


class _LossyFile(io.FileIO):
    """A file that drops what it cannot write instead of raising an error."""

    def write(self, data: Any) -> int:
        """Write the data, or drop it; return its length either way."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _lossy_stream(descriptor: int, encoding: str = "utf-8") -> TextIO:
    """Return a text stream for a file descriptor, which is not closed with it."""
    raw = _LossyFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=True)


class Console:
    """The user's terminal; only rank 0 speaks, except to say that a rank has failed."""

    def __init__(self, rank: int, stream: TextIO | None = None) -> None:
        self.rank = rank
        if stream is None:
            prepare_streams()
        self.stream = stream or sys.stdout
        self.log_file: Path | None = None

    def redirect_libraries(self, log_file: Path) -> None:
        """Send everything that is not said through this object to `log_file` from now on."""
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(
                f"{log_file} cannot be written ({error.strerror}): free some space or make it writable, or "
                "give another --output"
            ) from None
        self.stream.flush()
        self.stream = _lossy_stream(os.dup(self.stream.fileno()), self.stream.encoding)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        sys.stdout, sys.stderr = _lossy_stream(1), _lossy_stream(2)  # Python would raise on a full disk, even at exit
        self.log_file = log_file
        print(f"--- rank {self.rank}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)

    def say(self, text: str) -> None:
        """Print one fact on one line (rank 0); safe while a progress bar is on the screen."""
        if self.rank == 0:
            tqdm.write(spell_out(text), file=self.stream)
            self.stream.flush()

    def fail(self, text: str) -> None:
        """Print an error, from whichever rank has one."""
        self.stream.write(spell_out(text) + "\n")
        self.stream.flush()

    def say_unbuffered(self, text: str) -> None:
        """Print a line before the process ends at once; safe in a signal handler and beside a thread that writes."""
        with suppress(OSError, ValueError):
            after_bar = "\n" if self.interactive else ""
            os.write(self.stream.fileno(), f"{after_bar}{text}\n".encode(self.stream.encoding, "replace"))

    @property
    def interactive(self) -> bool:
        """Whether a progress bar can move on this terminal."""
        return self.rank == 0 and self.stream.isatty()


def human_time(seconds: float) -> str:
    """Return a duration for people: "2 h 05 min", "4 min 10 s", "9 s"."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"

"""One progress bar a pass, and lines of text between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

Advance = Callable[[int, int], None]


class Progress:
    """Shows on `stream`, or nothing at all if that is None."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def say(self, text: str) -> None:
        """Print a line of text."""
        if self.stream is not None and text:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def bar(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """A bar over `total_bytes`; the function it gives takes the bytes and documents that were just done."""
        if self.stream is None:
            yield lambda size, documents: None
            return
        # A log file gets a line now and then instead of ten a second.
        pause = 0.2 if self.stream.isatty() else 15.0
        done = 0
        with tqdm(
            desc=title,
            total=total_bytes,
            unit="B",
            unit_scale=True,
            file=self.stream,
            mininterval=pause,
            maxinterval=pause,
        ) as bar:

            def advance(size: int, documents: int) -> None:
                nonlocal done
                done += documents
                bar.set_postfix_str(f"{done:,} documents", refresh=False)
                bar.update(size)

            yield advance

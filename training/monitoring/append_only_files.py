"""Files that a run appends to (metrics, alarms, samples, TensorBoard): a full disk loses nothing of them.

What does not fit waits in memory and is written, in its order, when there is space.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from common.files import append_whole, replace_bytes, sync
from training.checkpointing.write_failures import is_full, reason_of


class DiskNotice:
    """Says once that the files of a run cannot be written, and once that they can again."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.waiting: set[Path] = set()

    def failed(self, path: Path, error: OSError) -> None:
        """Note that `path` waits for space."""
        if not self.waiting:
            what = (
                f"no space left on the disk of {self.folder}"
                if is_full(error)
                else f"{self.folder} cannot be written to ({reason_of(error)})"
            )
            self.say(f"  {what}: metrics are kept in memory and written when there is space")
        self.waiting.add(path)

    def worked(self, path: Path) -> None:
        """Note that `path` has all that was meant for it."""
        if path in self.waiting:
            self.waiting.discard(path)
            if not self.waiting:
                self.say(f"  {self.folder} can be written to again: no line of the metrics is missing")


class AppendedFile:
    """A file that grows by whole records in their order, which are lines unless a subclass has others.

    What does not fit waits in memory for the next call. The file is opened for each write, so it may be replaced by
    another in between.
    """

    def __init__(self, path: Path, notice: DiskNotice) -> None:
        self.path, self.notice = path, notice
        self.pending: list[bytes] = []

    def append(self, *records: bytes) -> bool:
        """Return whether all is on its way to the disk, earlier records included."""
        self.pending += records
        return self.flush()

    def flush(self) -> bool:
        """Write what waits; return whether nothing waits any more."""
        if self.pending:
            try:
                append_whole(self.path, b"".join(self.pending))
            except OSError as error:
                self.notice.failed(self.path, error)
                return False
            self.pending.clear()
            self.notice.worked(self.path)
        return True

    def sync(self) -> None:
        """Have the disk hold it even if the machine goes away."""
        if self.flush() and self.path.exists():
            try:
                sync(self.path)
            except OSError as error:  # a full network disk may say so only now
                self.notice.failed(self.path, error)

    def records(self) -> Iterator[bytes]:
        """Yield the whole records of the file as they are in it."""
        yield from (line + b"\n" for line in self.path.read_bytes().split(b"\n")[:-1])

    def keep_only(self, keep: Callable[[bytes], bool]) -> int:
        """Drop the records that `keep` says no to, written or waiting, and half a record at the end.

        The file is left whole or as it was. Return how many of its records are kept.
        """
        self.pending = [record for record in self.pending if keep(record)]
        if not self.pending:
            self.notice.worked(self.path)
        if not self.path.exists():
            return 0
        records = [record for record in self.records() if keep(record)]
        before, kept = self.path.read_bytes(), b"".join(records)
        if not before.startswith(kept):
            replace_bytes(self.path, [kept])
        elif kept != before:
            os.truncate(self.path, len(kept))  # takes no space, and is one change of its length
        return len(records)

"""A write that fails, because the disk is full or otherwise: what it is called, and how all ranks hear of it.

A full disk never ends a run: a model or a checkpoint that does not fit leaves the one before it as it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.files import replace_bytes
from training.processes.process_group import gather_from_ranks


class DiskFull(Exception):
    """A file of the run could not be written. Raised on all ranks together; a reason to try again, not to stop."""


class NotFinite(Exception):
    """The weights hold infinities or NaN and are not worth keeping."""


def is_full(error: OSError) -> bool:
    """Return whether there is no space left on the disk, or none of the user's quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason_of(error: OSError) -> str:
    """Return in a few words why a file could not be written."""
    return "no space left on the disk" if is_full(error) else error.strerror or str(error)


def on_all_ranks(work: Callable[[], Any], path: Path) -> list[Any]:
    """Return what `work` returns on each rank; collective. What one rank raises is raised on all of them.

    An OSError becomes DiskFull, which names `path`. NotFinite goes before it.
    """
    mine: Any
    try:
        mine = work()
    except NotFinite as error:
        mine = error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        mine = DiskFull(f"{path} could not be written: {reason_of(error)}{place}")
    results = gather_from_ranks(mine)
    for kind in (NotFinite, DiskFull):
        if errors := [result for result in results if isinstance(result, kind)]:
            raise errors[0]
    return results


@contextmanager
def dispensable(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Write something that a run can do without: if that fails, `say` what follows and why, and go on."""
    try:
        yield
    except OSError as error:
        say(f"  {what}: {reason_of(error)}")


def write_text(path: Path, text: str, say: Callable[[str], None]) -> None:
    """Replace a file that a run can do without."""
    with dispensable(f"{path} could not be written", say):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, [text.encode()])

"""Reading files that anyone may have made: plain files alone, and none larger than its kind can be.

What is wrong becomes an OSError, so that the caller words it with its own mend.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Without it, opening a named pipe waits for somebody to write into it.
_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def check_regular(path: Path) -> os.stat_result:
    """What the system knows of a plain file (or a link to one); OSError for anything else."""
    try:
        found = os.stat(path)
    except ValueError as error:  # a NUL in the name, or half a surrogate pair
        raise OSError(errno.EINVAL, f"no possible name: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device, not a file")
    return found


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file to read its bytes; OSError if it is missing, a folder, a pipe or a device."""
    check_regular(path)
    return os.fdopen(os.open(path, os.O_RDONLY | _DO_NOT_WAIT), "rb")


def read_text(path: Path, most_bytes: int, encoding: str = "utf-8") -> str:
    """The text of a plain file of at most `most_bytes`; OSError otherwise, UnicodeDecodeError if it is no text."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes // 2**20} MB")
    return data.decode(encoding)


def printable(value: object, most: int = 200) -> str:
    """Text from a file, fit for a message: at most so many characters, and none that a terminal would obey."""
    text = str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"

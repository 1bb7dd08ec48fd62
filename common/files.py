"""Files, read with care and replaced whole.

Reading takes plain files alone, and none larger than its kind can be; writing leaves the new content or the old, never
half of one. What goes wrong is an OSError, so that the caller words it with its own hint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jsonlines

from common.errors import UserError

# Without it, opening a named pipe waits for somebody to write into it.
_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

MOST_OBJECT_BYTES = 64 * 2**20
LFS_MARK = b"version https://git-lfs.github.com/spec/"
"""What a file begins with that stands for another one in a Git repository whose large files were not fetched."""

_JSON_FAULTS = {  # how Python's parser begins to say them
    "Unterminated string": "a text without its closing quote",
    "Expecting value": "no value of JSON",
    "Expecting property name": "no key in double quotes",
    "Expecting ',' delimiter": "no comma and no closing bracket",
    "Expecting ':' delimiter": "no colon after the key",
    "Invalid control character": "a line end or a control character within a text",
    "Invalid \\": "a backslash that escapes nothing",
    "Illegal trailing comma": "a comma before the closing bracket",
}

LFS_HINT = "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file stands for another one; OSError if it cannot be read."""
    with open_regular(path) as file:
        return file.read(len(LFS_MARK)) == LFS_MARK


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a plain file (or of a link to one); OSError for anything else."""
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
    """Return the text of a plain file of at most `most_bytes`; OSError otherwise, UnicodeDecodeError if no text."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes // 2**20} MB")
    return data.decode(encoding)


def read_json(path: Path, most_bytes: int) -> Any:
    """Return the value in a JSON file of at most `most_bytes`; OSError if unreadable, ValueError if no JSON."""
    return _loads(read_text(path, most_bytes))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of at most 64 MB, empty if there is none that can be read."""
    try:
        found = read_json(path, MOST_OBJECT_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, none where there is no such file.

    A line that is no object is skipped, such as the last one of a run that was killed while it wrote.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        # The standard parser by name: jsonlines takes orjson or ujson where they are installed, which judge otherwise.
        lines = jsonlines.Reader(file, loads=_loads)  # pyright: ignore[reportCallIssue] (attrs makes the parameter)
        yield from lines.iter(type=dict, skip_invalid=True)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("blocks within blocks without end") from None


def json_fault(error: json.JSONDecodeError) -> str:
    """Return in plain words what is wrong at the place where the parser of JSON stopped."""
    if error.pos >= len(error.doc.rstrip()):
        return "the file ends in the middle of it"
    return next((words for start, words in _JSON_FAULTS.items() if error.msg.startswith(start)), error.msg)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that a crash of the machine does not lose them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_files(files: dict[Path, Callable[[Path], object]]) -> None:
    """Write several files, each by its function, beside their places; flush them to the disk, and only then rename.

    A reader never meets half a file, and an error (a full disk) leaves what was there before.
    """
    beside = {path: path.with_name(path.name + ".new") for path in files}
    try:
        for path, write in files.items():
            write(beside[path])
            os.chmod(beside[path], beside[next(iter(files))].stat().st_mode)  # safetensors' own is for the owner alone
            sync(beside[path])
        for path in files:
            os.replace(beside[path], path)
    except BaseException:
        for path in beside.values():
            path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        sync(folder)


def replace_bytes(path: Path, chunks: Iterable[bytes]) -> None:
    """Give `path` a new content, whole or not at all."""

    def write(place: Path) -> None:
        with place.open("wb") as file:
            file.writelines(chunks)

    replace_files({path: write})


def append_whole(path: Path, data: bytes) -> None:
    """Write all of `data` at the end of `path`, or none of it and raise OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may write, on the disk of `path` or of the folder that it will be made in."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder that may not be there, or be changing."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def listed(values: Sequence[object], shown: int, most: int = 200) -> str:
    """Return values for a message: the first `shown`, each as `printable` has it, and how many others there are."""
    more = f" and {len(values) - shown:,} others" if len(values) > shown else ""
    return ", ".join(printable(value, most) for value in values[:shown]) + more


def printable(value: object, most: int = 200) -> str:
    """Return text that is fit for a message: at most `most` characters, and none that a terminal would obey."""
    text = str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"

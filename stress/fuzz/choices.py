"""A string of bytes read as decisions, and the mutations of JSON, of bytes and of folders that they steer.

Every case is such a string, whoever invents it: atheris (guided by coverage), hypothesis (in the test suite), or a
saved reproducer. Where the bytes run out every decision takes its first option, so a prefix of a case is a case too.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Option = TypeVar("Option")

SPARSE_BYTES = 2**38  # a file that nobody could read to its end; takes no room on the disk

NOWHERE = Path("no such file")  # for `put`, where a link to another folder does no harm: the user's own arrangement


class Choices:
    """Decisions made by the bytes of one case."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included; `low` where the bytes have run out."""
        size = max(1, ((high - low).bit_length() + 7) // 8)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return low + int.from_bytes(taken, "little") % (high - low + 1)

    def pick(self, options: Sequence[Option]) -> Option:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def once_in(self, times: int) -> bool:
        """True about once in so many times; False where the bytes have run out."""
        return self.integer(0, times - 1) == times - 1

    def bytes(self, most: int) -> bytes:
        """Up to `most` bytes as they come."""
        size = self.integer(0, most)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        taken, self._at = self._data[self._at :], len(self._data)
        return taken


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


# What nobody expects where another value belongs.
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    255,
    2**16,
    2**31,
    2**53,
    2**63,
    10**400,
    -(10**400),
    0.0,
    0.5,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "auto",
    "x",
    "1",
    "true",
    "none",
    "\ud800",
    "\x1b[31m\r\n\x00",
    "长" * 3000,
    "../outside",
    "/etc/hostname",
    ".",
    "a.b.c",
    [],
    {},
    [1],
    [[]],
    [0.9, 0.999],
    {"a": 1},
    {"": None},
    [1] * 2000,
    _nested(40),
    _nested(400),
    {"enabled": True},
    {"type": "AdamW"},
    {"lr": 0.1},
)
# What a byte mutation puts in: JSON that Python takes for more than it is, and marks of formats.
TOKENS = (
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"1e999",
    b"-1e999",
    b"NaN",
    b"9" * 5000,
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"//",
    b'"text"',
    b"null",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    b"\x80\x04\x95",
)


def mutated_json(value: Any, choices: Choices, most: int = 4) -> Any:
    """Return a copy with up to `most` places changed: replaced, deleted, added to, renamed, or swapped for another."""
    root = [_copied(value)]
    for _ in range(choices.integer(1, most)):
        container, key = choices.pick(_places(root))
        how = choices.integer(0, 5)
        if how == 0 and container is not root:
            del container[key]
        elif how == 1:
            other, other_key = choices.pick(_places(root))
            container[key] = _copied(other[other_key])
        elif how == 2 and isinstance(container, dict):
            container[str(key) + choices.pick(("s", "_", "\ud800", "\n", ".x"))] = container.pop(key)
        elif how == 3 and isinstance(container[key], (int, float)):
            container[key] = _other_number(container[key], choices)
        else:
            container[key] = _copied(choices.pick(JUNK))
    return root[0]


def _copied(value: Any) -> Any:
    """None for lists in lists that have grown too deep for Python's own copying."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _other_number(number: float, choices: Choices) -> Any:
    changes: tuple[Callable[[float], Any], ...] = (
        lambda n: n + 1,
        lambda n: n - 1,
        lambda n: -n,
        lambda n: n * 2,
        lambda n: n * 1000,
        lambda n: n / 2,
        lambda n: str(n),
        lambda n: [n],
    )
    try:
        return choices.pick(changes)(number)
    except OverflowError:
        return 0


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every (container, key) below `root`; of a long list only the first entries."""
    found, at = [(root, 0)], 0
    while at < len(found) and len(found) < 3000:
        container, key = found[at]
        inner = container[key]
        at += 1
        if isinstance(inner, dict):
            found += [(inner, name) for name in inner]
        elif isinstance(inner, list):
            found += [(inner, index) for index in range(min(len(inner), 20))]
    return found


def mutated_bytes(data: bytes, choices: Choices, most: int = 4) -> bytes:
    """Return a copy with up to `most` places changed: a bit, a byte, a span cut, doubled or zeroed, a token put in."""
    result = bytearray(data)
    for _ in range(choices.integer(1, most)):
        start = choices.integer(0, len(result))
        end = min(len(result), start + choices.pick((1, 2, 4, 16, 100)))
        how = choices.integer(0, 6)
        if how == 0 and start < len(result):
            result[start] ^= 1 << choices.integer(0, 7)
        elif how == 1 and start < len(result):
            result[start] = choices.integer(0, 255)
        elif how == 2:
            del result[start:end]
        elif how == 3:
            result[start:start] = result[start:end]
        elif how == 4:
            result[start:end] = bytes(end - start)
        elif how == 5:
            result[start:start] = choices.pick(TOKENS)
        else:
            del result[start:]
    return bytes(result)


def json_text(value: Any, choices: Choices) -> bytes:
    """`value` as a file would hold it, sometimes damaged afterwards."""
    data = json.dumps(value, ensure_ascii=choices.once_in(2)).encode("utf-8", "surrogatepass")
    return mutated_bytes(data, choices) if choices.once_in(8) else data


def put(path: Path, data: bytes, choices: Choices, outside: Path) -> None:
    """Write a file, or, seldom, leave in its place what is no plain file of this folder."""
    if not choices.once_in(40):
        path.write_bytes(data)
        return
    kind = choices.integer(0, 8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to(outside)
    elif kind == 4:
        path.symlink_to("/dev/zero")
    elif kind == 5:
        path.symlink_to("no such file")
    elif kind == 6:
        path.write_bytes(b"")
    elif kind == 7:
        with open(path, "wb") as file:
            file.truncate(SPARSE_BYTES)
    # else: missing

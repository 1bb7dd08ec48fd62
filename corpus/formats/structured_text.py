"""JSON arrays, pretty-printed JSON, CSV, TSV and plain text, turned into JSON Lines as they are read.

Every function takes blocks of UTF-8 and yields blocks of JSON Lines, a line a record.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator

from common.errors import UserError
from common.files import json_fault
from corpus.formats.compression import Block
from corpus.formats.fields import DEFAULT_KEY

MAX_RECORD_BYTES = 256 * 1024 * 1024
_BETWEEN = re.compile(r"[\s,\[\]\x1e\ufeff]*")  # with the brackets of an array around all: no record is an array
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_BLANK_ENDS = re.compile(r"\A(?:[^\S\n]*\n)+|(?:\n[^\S\n]*)+\Z")
_CHARACTERS_AT_ONCE = 2**16
_CUT_OFF = "Unterminated string"  # how the parser calls a string that may go on in the next block
_TAIL = 64  # characters before the end in which any other complaint may be due to a cut, too
csv.field_size_limit(MAX_RECORD_BYTES)


class _Blocks(io.BufferedIOBase):
    """Blocks as a file of UTF-8, which knows what was read of the file on disk for them."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = iter(blocks)
        self._consumed = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return the next block, whatever its size; nothing at the end."""
        for block, consumed in self._blocks:
            self._consumed += consumed
            if block:
                return block
        return b""

    def text(self, newline: str | None) -> io.TextIOWrapper:
        """Return its text; bytes that are no UTF-8 become lone surrogates, which `_lines` turns back."""
        # pyright asks for the name of a file, which nobody reads
        return io.TextIOWrapper(self, "utf-8-sig", "surrogateescape", newline)  # pyright: ignore[reportArgumentType]

    def consumed(self) -> int:
        """Return the bytes of the file that were read since the last call."""
        consumed, self._consumed = self._consumed, 0
        return consumed


def _lines(records: list[str], consumed: int) -> Block:
    return "".join(f"{record}\n" for record in records).encode("utf-8", "surrogateescape"), consumed


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_values(blocks: Iterable[Block], name: str) -> Iterator[Block]:
    """Yield the elements of JSON arrays, or values that follow each other, however they are laid out.

    UserError names the file, the record and the line where the text stops being JSON: nothing after it can be told.
    """
    source, scan = _Blocks(blocks), _ValueScan(name)
    text = source.text("\n")
    while piece := text.read(_CHARACTERS_AT_ONCE):
        yield _lines(scan.add(piece), source.consumed())
    yield _lines(scan.add("", final=True), source.consumed())


class _ValueScan:
    """Finds the borders of JSON values in a text that comes in pieces."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._decode = json.JSONDecoder().raw_decode
        self._rest, self._wanted = "", 0
        self._records, self._line = 0, 1
        self._before = 0  # characters that stand before the rest on its line

    def add(self, text: str, final: bool = False) -> list[str]:
        """Return the values that are complete now, each on one line."""
        self._rest += text
        if len(self._rest) < self._wanted and not final:
            return []
        found, place = [], 0
        while True:
            start = place
            place = _BETWEEN.match(self._rest, place).end()  # type: ignore[union-attr]
            self._line += self._rest.count("\n", start, place)
            if place == len(self._rest):
                break
            end = self._end_of_value(place, final)
            if end is None:
                break
            self._line += self._rest.count("\n", place, end)
            # A line end between tokens is a space; within a string JSON has none.
            found.append(self._rest[place:end].replace("\n", " ").replace("\r", " "))
            self._records += 1
            place = end
        self._before = self._column(place) - 1
        self._rest = self._rest[place:]
        # A value that goes on is looked at again only when its text has doubled, so that reading stays linear.
        self._wanted = 2 * len(self._rest)
        return found

    def _end_of_value(self, place: int, final: bool) -> int | None:
        """Return the end of the value at `place`, None if it is not all there yet."""
        try:
            end = self._decode(self._rest, place)[1]
        except json.JSONDecodeError as error:
            may_go_on = error.msg.startswith(_CUT_OFF) or error.pos > len(self._rest) - _TAIL
            if not final and may_go_on and len(self._rest) - place < MAX_RECORD_BYTES:
                return None
            line = self._line + self._rest.count("\n", place, error.pos)
            where = f"{self.name}:{line}: record {self._records + 1} is not JSON at column {self._column(error.pos)}"
            raise UserError(f"{where}: {json_fault(error)}; {self._hint(place, error)}") from None
        except RecursionError:
            raise UserError(f"{self.name}:{self._line}: blocks within blocks without end") from None
        # A number may go on in the next block.
        return end if final or end < len(self._rest) else None

    def _column(self, place: int) -> int:
        """Return the column of a place, from 1."""
        start = self._rest.rfind("\n", 0, place)
        return place - start if start >= 0 else self._before + place + 1

    def _hint(self, place: int, error: json.JSONDecodeError) -> str:
        before, rest = self._rest[place : error.pos].rstrip(), self._rest[error.pos :].rstrip()
        if (rest[:1] in ("}", "]") and before.endswith(",")) or error.msg.startswith("Illegal trailing comma"):
            return "take out the comma before the closing bracket"
        if rest.startswith(("'", "None", "True", "False")):
            return "it is written as Python prints it (single quotes, None, True); write it with json.dumps"
        if not rest or error.msg.startswith(_CUT_OFF):
            return "copy the file again, it may be cut off"
        return "write the file again with json.dump"


# --- tables -----------------------------------------------------------------------------------------------------------


def csv_rows(blocks: Iterable[Block], name: str, delimiter: str) -> Iterator[Block]:
    """Yield the rows of a table whose first row names its columns; one of another length becomes an array.

    UserError if it is no table.
    """
    source = _Blocks(blocks)
    reader = csv.reader(source.text("\n"), delimiter=delimiter, strict=True)
    rows: list[str] = []
    size = 0
    try:
        columns = _column_names(next(reader, []), name)
        for values in reader:
            row = dict(zip(columns, values, strict=True)) if len(values) == len(columns) else values
            rows.append(json.dumps(row, ensure_ascii=False) if values else "")
            size += len(rows[-1])
            if size > _CHARACTERS_AT_ONCE:
                yield _lines(rows, source.consumed())
                rows, size = [], 0
    except csv.Error as error:
        if rows:
            yield _lines(rows, source.consumed())
        raise UserError(
            f"{name}:{reader.line_num}: not a row of a table ({error}); a value with quotes or line ends in it is put "
            "in quotes, and a quote in it doubled"
        ) from None
    yield _lines(rows, source.consumed())


def _column_names(values: list[str], name: str) -> list[str]:
    if len(set(values)) < len(values) or not all(value.strip() and len(value) <= 100 for value in values):
        raise UserError(f"{name}: its first row does not name the columns; put their names there, such as text")
    return [value.strip() for value in values]


# --- plain text -------------------------------------------------------------------------------------------------------


def plain_text(blocks: Iterable[Block], name: str, split: bool) -> Iterator[Block]:
    """Yield the text as one document, or with `split` every stretch between blank lines as one.

    Line ends become "\\n" whatever they were, and blank lines at both ends are left out.
    """
    source = _Blocks(blocks)
    text = source.text(None)
    parts: list[str] = []
    size = 0
    while piece := text.read(_CHARACTERS_AT_ONCE):
        parts.append(piece)
        size += len(piece)
        if split:
            *whole, rest = _BLANK_LINES.split("".join(parts))
            yield _lines(_as_records(whole), source.consumed())
            parts, size = [rest], len(rest)
        if size > MAX_RECORD_BYTES // 4:
            raise UserError(f"{name}: a document of {size:,} characters; divide the file, or give --split_txt")
    rest = "".join(parts)
    yield _lines(_as_records(_BLANK_LINES.split(rest) if split else [rest]), source.consumed())


def _as_records(documents: list[str]) -> list[str]:
    cleaned = (_BLANK_ENDS.sub("", document.removeprefix("\ufeff")) for document in documents)
    return [json.dumps({DEFAULT_KEY: document}, ensure_ascii=False) for document in cleaned if document]

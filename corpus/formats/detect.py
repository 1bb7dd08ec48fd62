"""What a file of text is: its format, its encoding and which of its values are the text, told from its beginning.

The content decides and the suffix helps. What cannot be read is refused here, before anything large is read, with one
sentence that names the format and says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import LFS_HINT, LFS_MARK, listed, open_regular, printable
from corpus.formats import encodings, structured_text
from corpus.formats.arrow import arrow_rows, is_arrow
from corpus.formats.compression import Block, read_blocks, zip_members
from corpus.formats.fields import TEXT_KEY, TextFields, choose_fields
from corpus.formats.find_files import TEXT_SUFFIXES, suffix_of

HEAD_BYTES = 256 * 1024
MOST_HEAD_BYTES = 16 * 2**20  # for a file whose first line is longer
RECORDS_LOOKED_AT = 50
_ZIP_MAGIC = b"PK\x03\x04"
# How files begin that are no text, and what to do with them.
_FOREIGN = {
    LFS_MARK: LFS_HINT,
    b"%PDF": "is a PDF; extract its text first, with pdftotext",
    b"<!doctype html": "is a web page; extract its text first, or download the file again",
    b"<html": "is a web page; extract its text first, or download the file again",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"Rar!": "is a RAR archive; unpack it first",
    b"\x80\x04\x95": "is a Python pickle; write its texts with json.dumps, one a line",
    b"SQLite format 3": "is an SQLite database; export its table as CSV",
    b"\x93NUMPY": "holds numpy arrays, not text",
}
VALIDATION = -1
_JSON_START = re.compile(r'\s*\[?\s*\{\s*"')
_PLAIN = ("jsonl", "utf-8", False, ",", False)
_TAR_PLACE, _TAR_MAGIC = 257, b"ustar"


@dataclass(frozen=True)
class TextFile:
    """A file, or a member of a zip archive, and how it is read; `remarks` are what a user should know of it."""

    path: Path
    member: str | None = None
    more: tuple[Path, ...] = ()
    """Files that are read behind it in the same way, each a document as this one is."""
    format: str = "jsonl"
    """jsonl, json (arrays and pretty-printed values), csv, tsv, txt or arrow (Parquet too)."""
    encoding: str = "utf-8"
    cr_only: bool = False
    delimiter: str = ","
    split_txt: bool = False
    fields: TextFields = TEXT_KEY
    source: int = 0
    """Which of the inputs it is of, from 0; VALIDATION for files that are given as validation text."""
    remarks: tuple[str, ...] = ()

    @property
    def side(self) -> str:
        """Return "val" for a file of validation text, or "train"."""
        return "val" if self.source == VALIDATION else "train"

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    def place(self, number: int) -> str:
        """Return the place of a record by its number, from 1, for a message."""
        if self.more:
            return f"{(self.path, *self.more)[number - 1]}, record 1"
        return f"{self.name}:{number}" if self.format == "jsonl" else f"{self.name}, record {number}"

    @property
    def reading(self) -> str:
        """Return all that decides, together with its bytes, which documents it gives; empty for plain JSON Lines."""
        parts = (self.format, self.encoding, self.cr_only, self.delimiter, self.split_txt, self.fields)
        return "" if parts == (*_PLAIN, TEXT_KEY) else repr(parts)


def detect(path: Path, given: TextFields | None, split_txt: bool) -> list[TextFile]:
    """Return what is to be read of a path: one file, or the members of a zip archive. UserError if it is no text.

    `given` are the fields that the flags name, None if they name none.
    """
    try:
        with open_regular(path) as file:
            magic = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if is_arrow(magic):
        records = _objects(b"".join(block for block, _ in islice(arrow_rows(path), 1)))
        return [_with_fields(TextFile(path, format="arrow"), records, given)]
    members = _text_members(path) if magic.startswith(_ZIP_MAGIC) else [None]
    return [_detect_text(TextFile(path, member), given, split_txt) for member in members]


def json_lines(file: TextFile) -> Iterator[Block]:
    """Yield the content of a file as UTF-8 JSON Lines, a line a record, whatever its format."""
    if file.more:
        return map(_document_line, [replace(file, path=path, more=()) for path in (file.path, *file.more)])
    if file.format == "arrow":
        return arrow_rows(file.path, file.fields.names())
    blocks = encodings.to_utf8(read_blocks(file.path, file.member), file.encoding)
    if file.cr_only:
        blocks = ((block.replace(b"\r", b"\n"), consumed) for block, consumed in blocks)
    return _as_json_lines(file, blocks)


def _document_line(file: TextFile) -> Block:
    """Return the line of a file that is a document; a blank one if there is no text in it."""
    blocks = list(json_lines(file))
    return b"".join(block for block, _ in blocks) or b"\n", sum(consumed for _, consumed in blocks)


def _as_json_lines(file: TextFile, blocks: Iterable[Block]) -> Iterator[Block]:
    """Turn blocks of UTF-8 of a file's format into JSON Lines."""
    if file.format == "json":
        return structured_text.json_values(blocks, file.name)
    if file.format in ("csv", "tsv"):
        return structured_text.csv_rows(blocks, file.name, file.delimiter)
    if file.format == "txt":
        return structured_text.plain_text(blocks, file.name, file.split_txt)
    return iter(blocks)


def _text_members(path: Path) -> list[str]:
    names = zip_members(path)
    if "[Content_Types].xml" in names:
        raise UserError(f"{path}: is an Office document; save its table as CSV, or its text as .txt")
    readable = [name for name in names if suffix_of(name) in TEXT_SUFFIXES]
    if not readable:
        raise UserError(f"{path}: no text in this archive ({listed(names, 5, 40)})")
    return readable


def _with_fields(file: TextFile, records: Sequence[Mapping[str, Any]], given: TextFields | None) -> TextFile:
    """Return the file with the fields that are its text, given its first records."""
    fields, remark = choose_fields(file.name, records, given)
    return replace(file, fields=fields, remarks=(*file.remarks, *([remark] if remark else ())))


def _detect_text(file: TextFile, given: TextFields | None, split_txt: bool) -> TextFile:
    head, is_whole = _head(file)
    _refuse_foreign(file, head)
    encoding = encodings.recognize(head)
    if encoding is None:
        raise UserError(f"{file.name}: not UTF-8, UTF-16, GB18030 or Big5; convert it to UTF-8, with iconv")
    remarks = [] if encoding == "utf-8" else [f"reads as {encoding.upper().replace('HKSCS', '')}"]
    data = b"".join(block for block, _ in encodings.to_utf8([(head, 0)], encoding))
    cr_only = b"\r" in data and b"\n" not in data
    if cr_only:
        data = data.replace(b"\r", b"\n")
        remarks.append("its lines end in CR alone")
    form = _format(file, data, is_whole)
    file = replace(file, format=form, encoding=encoding, cr_only=cr_only, remarks=tuple(remarks))
    if form == "txt":
        if _JSON_START.match(data[:1000].decode("utf-8", "replace").lstrip("\ufeff")):
            remarks.append("begins with JSON and is read as plain text, since most of its lines are none")
        return replace(file, split_txt=split_txt, remarks=tuple(remarks))
    file = replace(file, delimiter=_delimiter(form, data))
    return _with_fields(file, _first_records(file, data, is_whole), given)


def _head(file: TextFile) -> tuple[bytes, bool]:
    """Return the first bytes of a file, at least a line unless it is very long, and whether they are all of it."""
    parts: list[bytes] = []
    size = 0
    for block, _ in read_blocks(file.path, file.member):
        parts.append(block)
        size += len(block)
        if size >= HEAD_BYTES and (size >= MOST_HEAD_BYTES or any(end in part for part in parts for end in b"\n\r")):
            return b"".join(parts), False
    return b"".join(parts), True


def _refuse_foreign(file: TextFile, head: bytes) -> None:
    start = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, sentence in _FOREIGN.items():
        if start.startswith(magic.lower()):
            raise UserError(f"{file.name}: {sentence}")
    if head[_TAR_PLACE : _TAR_PLACE + len(_TAR_MAGIC)] == _TAR_MAGIC:
        raise UserError(f"{file.name}: is a tar archive; unpack it first")


def _format(file: TextFile, data: bytes, is_whole: bool) -> str:
    """Return the format of a text, given its beginning as UTF-8; UserError if it is none that is read."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff\x1e")
    lines = [line for line in text.splitlines() if line.strip()]
    if not is_whole and len(lines) > 1:
        lines.pop()  # it may be cut off
    if not lines:
        return "jsonl"
    objects = sum(isinstance(_loaded(line), dict) for line in lines)
    start, suffix = text.lstrip()[:1], suffix_of(file.member or file.path.name)
    if 2 * objects >= len(lines) or (objects and start != "[" and suffix != ".txt"):
        return "jsonl"
    if suffix in (".csv", ".tsv"):
        return suffix[1:]
    if suffix == ".txt" and (not _JSON_START.match(text) or (objects and start != "[")):
        return "txt"
    if start == "{" and len(lines) == 1 and not is_whole:
        return "jsonl"  # one line so long that its end has not been seen
    if start in ("[", "{"):
        return "json"
    if suffix in (".jsonl", ".ndjson", ".json") and any(line.lstrip()[:1] == "{" for line in lines):
        return "jsonl"
    raise UserError(
        f"{file.name}: its first line is {printable(lines[0].strip(), 60)}, which is no JSON object; name a file of "
        'plain text .txt, a table .csv or .tsv, or write one {"text": ...} on each line'
    )


def _loaded(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _delimiter(form: str, data: bytes) -> str:
    """Return what separates the values of a table: a tab, a comma, or a semicolon where the first row has no comma."""
    first = data.partition(b"\n")[0]
    return "\t" if form == "tsv" else ";" if b";" in first and b"," not in first else ","


def _first_records(file: TextFile, data: bytes, is_whole: bool) -> list[Mapping[str, Any]]:
    """Return the first objects of a file, given its beginning as UTF-8; what is cut off at its end does not count."""
    parts = _as_json_lines(file, [(data, 0)])
    try:
        return _objects(b"".join(block for block, _ in (parts if is_whole else islice(parts, 1))))
    except UserError:
        if is_whole or file.format == "json":
            raise
        return []  # a row that is cut off


def _objects(lines: bytes) -> list[Mapping[str, Any]]:
    """Return the first objects among JSON Lines."""
    values = (_loaded(line) for line in lines.decode("utf-8", "replace").lstrip("\ufeff\x1e").split("\n"))
    return list(islice((value for value in values if isinstance(value, dict)), RECORDS_LOOKED_AT))

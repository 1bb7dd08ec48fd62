"""Text in, documents out: any format as JSON Lines, in chunks of whole lines.

The main process cuts the files into chunks and the workers parse them. Memory holds a few chunks, never a file; only
a single line longer than a chunk makes one grow, up to MAX_LINE_BYTES.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from corpus.conversations import records
from corpus.formats.detect import VALIDATION, TextFile, detect, json_lines
from corpus.formats.fields import TEXT_KEY, TextFields
from corpus.formats.find_files import files_of
from corpus.formats.structured_text import MAX_RECORD_BYTES as MAX_LINE_BYTES

CHUNK_BYTES = 512 * 1024
PROBLEMS_NAMED = 10

# What can be wrong with a line; the keys stand in the manifest, the sentences in messages, with the key of the text.
REASONS = {
    "broken_json": "broken JSON",
    "invalid_utf8": "invalid UTF-8",
    "lone_surrogate": "half a surrogate pair, which is not a character",
    "missing_text": 'no key "{key}"',
    "not_an_object": "not a JSON object",
    "text_not_a_string": '"{key}" is not a string',
    **records.REASONS,
}
# An empty text, or one of white space alone, is nothing to learn from but no fault either: left out, counted, and not
# held against the file.
EMPTY_TEXT = "empty_text"
_INITIAL = ("\ufeff", "\x1e")  # a byte-order mark, and the record separator of JSON text sequences (RFC 7464)


@dataclass(frozen=True)
class Chunk:
    """Whole JSON Lines of one file; `file_bytes` is how far the file on disk was read for it."""

    file: TextFile
    first_line: int
    data: bytes
    file_bytes: int


@dataclass
class Parsed:
    """The documents of a chunk in their order, with their UTF-8 bytes, and what is wrong with its other lines."""

    texts: list[str]
    encoded: list[bytes]
    problems: list[tuple[int, str]]
    lines: int = 0
    conversations: dict[int, records.Conversation] = field(default_factory=dict)
    """The turns of those documents that are conversations, by their number in `texts`."""


def text_files(
    paths: Sequence[Path], val_paths: Sequence[Path] = (), fields: TextFields | None = None, split_txt: bool = False
) -> list[TextFile]:
    """Return what is to be read of files, folders and patterns: `val_paths`, which are for validation, come first.

    UserError names all that cannot be read.
    """
    files: list[TextFile] = []
    problems: list[str] = []

    def tried(find: Callable[..., list[Any]], *arguments: object) -> list[Any]:
        try:
            return find(*arguments)
        except UserError as error:
            problems.append(str(error))
            return []

    for place, path in enumerate([*val_paths, *paths]):
        source = max(place - len(val_paths), VALIDATION)
        for file in tried(files_of, path):
            files += [replace(found, source=source) for found in tried(detect, file, fields, split_txt)]
    if problems:
        more = len(problems) - PROBLEMS_NAMED
        raise UserError("\n".join(problems[:PROBLEMS_NAMED] + ([f"and {more:,} other files"] if more > 0 else [])))
    return files


def small_files_joined(files: Sequence[TextFile]) -> list[TextFile]:
    """Join neighbouring files that are a document each, as many as a chunk holds: a chunk has its price, whatever its
    size.
    """
    found: list[TextFile] = []
    size = 0
    for file in files:
        size += (own := file.path.stat().st_size)
        last = found[-1] if found else None
        alike = last and file.format == "txt" and replace(last, path=file.path, more=()) == file
        if last and alike and not file.split_txt and size <= CHUNK_BYTES:
            found[-1] = replace(last, more=(*last.more, file.path))
        else:
            found.append(file)
            size = own
    return found


def remarks(files: Sequence[TextFile]) -> list[str]:
    """Return what a user should know of how files are read, a sentence a kind."""
    names: dict[str, list[str]] = {}
    for file in files:
        for remark in file.remarks:
            names.setdefault(remark, []).append(file.name)
    found = [f"{these[0]}{f' and {len(these) - 1:,} others' if these[1:] else ''}: {r}" for r, these in names.items()]
    whole = sum(file.format == "txt" and not file.split_txt for file in files)
    if whole:
        what = "is one document" if whole == 1 else f"and {whole - 1:,} other .txt files are a document each"
        first = next(file.name for file in files if file.format == "txt")
        found.append(f"{first} {what}; with --split_txt, each stretch between blank lines is one")
    return found


def read_chunks(file: TextFile, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a file into chunks of whole lines; the cuts depend on nothing but the file. UserError if unreadable."""
    parts: list[bytes] = []
    size = file_bytes = 0
    line, target = 1, chunk_bytes
    for block, consumed in json_lines(file):
        parts.append(block)
        size += len(block)
        file_bytes += consumed
        if size < target:
            continue
        data = b"".join(parts)
        end = data.rfind(b"\n") + 1
        if end:
            yield Chunk(file, line, data[:end], file_bytes)
            line += data.count(b"\n", 0, end)
            file_bytes = 0
        elif size > MAX_LINE_BYTES:
            limit = MAX_LINE_BYTES // 2**20
            raise UserError(f"{file.place(line)}: a line of more than {limit} MB; JSON Lines has one document a line")
        # A line longer than a chunk is looked at again only when it has doubled, so that joining stays linear.
        target = chunk_bytes if end else 2 * size
        parts = [data[end:]]
        size = len(parts[0])
    if size:
        yield Chunk(file, line, b"".join(parts), file_bytes)


def describe(reason: str, fields: TextFields = TEXT_KEY) -> str:
    """Return in words what is wrong with a line."""
    return REASONS[reason].format(key='" or "'.join(fields.names()))


def parse_chunk(chunk: Chunk) -> Parsed:
    """Parse every line that is not blank; bad lines become (line number, reason) instead of errors."""
    parsed = Parsed([], [], [])
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
        if line.strip(b" \t\r\xef\xbb\xbf"):
            parsed.lines += 1
            if reason := _add_line(parsed, line, chunk.file.fields):
                parsed.problems.append((number, reason))
    return parsed


def _add_line(parsed: Parsed, line: bytes, fields: TextFields) -> str | None:
    """Add the text of a line, or return what is wrong with it."""
    try:
        content = line.decode("utf-8")
        record = json.loads(content[1:] if content.startswith(_INITIAL) else content)
    except UnicodeDecodeError:
        return "invalid_utf8"
    except (ValueError, RecursionError):
        return "broken_json"
    if not isinstance(record, dict):
        return "not_an_object"
    turns = None
    try:
        turns = records.read_conversation(record) if fields.is_conversation(record) else None
        text = fields.text_of(record) if turns is None else records.spoken(turns)
    except records.BadConversation as error:
        return str(error)
    except KeyError:
        return "missing_text"
    except TypeError:
        return "text_not_a_string"
    if not text or text.isspace():
        return EMPTY_TEXT
    try:
        encoded = (text if turns is None else records.as_text(turns)).encode("utf-8")
    except UnicodeEncodeError:
        return "lone_surrogate"
    if turns is not None:
        parsed.conversations[len(parsed.texts)] = turns
    parsed.texts.append(text)
    parsed.encoded.append(encoded)
    return None

"""JSON Lines in, documents out: plain, gzip or Zstandard, read in chunks of whole lines.

The main process cuts the files into chunks and the workers parse them. Memory holds a few chunks, never a file; only
a single line longer than a chunk makes one grow, up to MAX_LINE_BYTES.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from common.errors import UserError
from common.files import open_regular

CHUNK_BYTES = 512 * 1024
MAX_LINE_BYTES = 256 * 1024 * 1024
# Small, since a block of gzip can grow a thousandfold when it is unpacked, and one of Zstandard 32,000 times.
READ_BYTES = 64 * 1024
ZSTD_READ_BYTES = 2 * 1024

# What can be wrong with a line; the keys stand in the manifest, the sentences in messages.
REASONS = {
    "broken_json": "broken JSON",
    "invalid_utf8": "invalid UTF-8",
    "lone_surrogate": "half a surrogate pair, which is not a character",
    "missing_text": 'no key "text"',
    "not_an_object": "not a JSON object",
    "text_not_a_string": '"text" is not a string',
}
# An empty text is nothing to learn from but no fault either: left out, counted, and not held against the file.
EMPTY_TEXT = "empty_text"
_INITIAL = ("\ufeff", "\x1e")  # a byte-order mark, and the record separator of JSON text sequences (RFC 7464)


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file; `file_bytes` is how far the file on disk was read for it."""

    source: str
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
    empty: int = 0


def read_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a file into chunks of whole lines; the cuts depend on nothing but the file. UserError if unreadable."""
    parts: list[bytes] = []
    size = file_bytes = 0
    line, target = 1, chunk_bytes
    for block, consumed in _blocks(path):
        parts.append(block)
        size += len(block)
        file_bytes += consumed
        if size < target:
            continue
        data = b"".join(parts)
        end = data.rfind(b"\n") + 1
        if end:
            yield Chunk(str(path), line, data[:end], file_bytes)
            line += data.count(b"\n", 0, end)
            file_bytes = 0
        elif size > MAX_LINE_BYTES:
            limit = MAX_LINE_BYTES // 2**20
            raise UserError(f"{path}:{line}: a line of more than {limit} MB; JSON Lines has one document a line")
        # A line longer than a chunk is looked at again only when it has doubled, so that joining stays linear.
        target = chunk_bytes if end else 2 * size
        parts = [data[end:]]
        size = len(parts[0])
    if size:
        yield Chunk(str(path), line, b"".join(parts), file_bytes)


def parse_chunk(chunk: Chunk) -> Parsed:
    """Parse every line that is not blank; bad lines become (line number, reason) instead of errors."""
    parsed = Parsed([], [], [])
    for number, line in enumerate(chunk.data.split(b"\n"), chunk.first_line):
        if line.strip(b" \t\r\xef\xbb\xbf"):
            parsed.lines += 1
            if reason := _add_line(parsed, line):
                parsed.problems.append((number, reason))
    return parsed


def _add_line(parsed: Parsed, line: bytes) -> str | None:
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
    if "text" not in record:
        return "missing_text"
    text = record["text"]
    if not isinstance(text, str):
        return "text_not_a_string"
    if not text:
        parsed.empty += 1
        return None
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        return "lone_surrogate"
    parsed.texts.append(text)
    parsed.encoded.append(encoded)
    return None


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield unpacked blocks of a file, each with the number of bytes read from the disk for it."""
    try:
        with open_regular(path) as file:
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"\x1f\x8b":
                yield from _unpack(path, file, lambda: zlib.decompressobj(wbits=31), READ_BYTES)
            # The suffix counts too: parallel compressors put a frame with another mark in front.
            elif magic == b"\x28\xb5\x2f\xfd" or (path.suffix == ".zst" and magic):
                yield from _unpack(path, file, _zstd_decoder, ZSTD_READ_BYTES)
            else:
                while block := file.read(READ_BYTES):
                    yield block, len(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _zstd_decoder() -> Any:
    # Files written with `zstd --long` need a window beyond the library's default.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _unpack(path: Path, file: BinaryIO, new_decoder: Callable[[], Any], read_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Unpack every member (gzip) or frame (zstd) of a file; both libraries offer the same three attributes.

    Done by hand because zstandard's own stream reader takes a file that was cut short for a complete one.
    """
    decoder = new_decoder()
    try:
        while block := file.read(read_bytes):
            consumed = len(block)
            # Archivers may pad a finished member with zero bytes.
            while block := block.lstrip(b"\0") if decoder.eof else block:
                if decoder.eof:
                    decoder = new_decoder()
                yield decoder.decompress(block), consumed
                consumed = 0
                block = decoder.unused_data
    except (zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: damaged compressed file ({error}); copy or download it again") from None
    if not decoder.eof:
        raise UserError(f"{path}: the compressed file ends too early; copy or download it again")

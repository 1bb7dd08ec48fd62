"""The character encoding of a text file: recognized from its beginning, and turned into UTF-8 as it is read."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache

from corpus.formats.compression import Block

# Han characters and punctuation that ordinary text is made of; by-products of a wrong encoding are mostly others.
_ORDINARY_SHARE = 0.85
_VALID_LINES = 0.5  # a UTF-8 file with some bad lines is still one: those are counted and named


def recognize(head: bytes) -> str | None:
    """Return the Python codec for the beginning of a file: utf-8, utf-16-le, utf-16-be, utf-32, gb18030 or big5hkscs.

    None if it reads as none of them.
    """
    # A byte-order mark, or the bracket that JSON begins with, whose zero bytes tell the width of a character.
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"{", b"[", b"\0")):
        codec = json.detect_encoding(head)
        if not codec.startswith("utf-8"):
            return codec
    if _decodes(head, "utf-8") or _lines_are_utf8(head):
        return "utf-8"
    shares = {codec: _ordinary_share(head, codec) for codec in ("gb18030", "big5hkscs")}
    best = max(shares, key=lambda codec: shares[codec])
    return best if shares[best] >= _ORDINARY_SHARE else None


def to_utf8(blocks: Iterable[Block], codec: str) -> Iterator[Block]:
    """Turn blocks of an encoding into UTF-8. Bytes that are no character stay as they are, for the parser to find."""
    if codec == "utf-8":
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(codec)("surrogateescape" if codec in ("gb18030", "big5hkscs") else "replace")
    for block, consumed in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogateescape"), consumed
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape"), 0


def _decodes(data: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _lines_are_utf8(head: bytes) -> bool:
    lines = [line for line in head.splitlines() if not line.isascii()]
    return sum(_decodes(line, "utf-8") for line in lines) > _VALID_LINES * len(lines)


def _ordinary_share(head: bytes, codec: str) -> float:
    """Return the share of characters beyond ASCII that ordinary Chinese text has."""
    text = codecs.getincrementaldecoder(codec)("replace").decode(head)
    others = [c for c in text if c > "\x7f"]
    return sum(c in _ordinary() for c in others) / max(1, len(others))


def frequent_han(codec: str) -> frozenset[str]:
    """Return the frequent Han characters (level 1) of "gb2312" or "big5", and some ASCII."""
    first, last = {"gb2312": (0xB0, 0xD7), "big5": (0xA4, 0xC6)}[codec]
    pairs = (bytes((lead, trail)) for lead in range(first, last + 1) for trail in range(0x40, 0xFF))
    return frozenset(character for pair in pairs if len(character := pair.decode(codec, "ignore")) == 1)


@lru_cache(maxsize=1)
def _ordinary() -> frozenset[str]:
    """Return the frequent Han characters of both standards and the marks that go with them."""
    marks = (*range(0x2010, 0x2030), *range(0x3000, 0x3020), *range(0xFF01, 0xFF5F), 0xB7, 0x2026)
    return frequent_han("gb2312") | frequent_han("big5") | frozenset(map(chr, marks))

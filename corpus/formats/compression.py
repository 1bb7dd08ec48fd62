"""Files as blocks of unpacked bytes, each with what was read of the file on disk for it; never all of it in memory."""

from __future__ import annotations

import bz2
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from common.errors import UserError
from common.files import open_regular

# Small, since a block of gzip can grow a thousandfold when it is unpacked, and one of the others 30,000 times.
READ_BYTES = 64 * 1024
SMALL_READ_BYTES = 2 * 1024
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

Block = tuple[bytes, int]
"""Unpacked bytes, and the bytes of the file that were read for them."""


def read_blocks(path: Path, member: str | None = None) -> Iterator[Block]:
    """Yield the unpacked bytes of a file, or of a member of a zip archive; UserError if unreadable or damaged."""
    try:
        with open_regular(path) as file:
            if member is not None:
                yield from _unzip(path, file, member)
                return
            magic = file.read(6)
            file.seek(0)
            if found := _decoder(path, magic):
                yield from _unpack(path, file, *found)
            else:
                while block := file.read(READ_BYTES):
                    yield block, len(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def zip_members(path: Path) -> list[str]:
    """Return the names of the files in a zip archive, in alphabetical order."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            hidden = ("__MACOSX/", ".")
            return sorted(
                info.filename
                for info in archive.infolist()
                if not info.is_dir() and not info.filename.startswith(hidden) and "/." not in info.filename
            )
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decoder(path: Path, magic: bytes) -> tuple[Callable[[], Any], int] | None:
    """Return what unpacks a file and how much to give it at once; None for a plain one."""
    if magic[:2] == b"\x1f\x8b":
        return lambda: zlib.decompressobj(wbits=31), READ_BYTES
    if magic[:3] == b"BZh":
        return bz2.BZ2Decompressor, SMALL_READ_BYTES
    if magic == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor, SMALL_READ_BYTES
    # The suffix counts too: parallel compressors put a frame with another mark in front.
    if magic[:4] == b"\x28\xb5\x2f\xfd" or (path.suffix == ".zst" and magic):
        return _zstd_decoder, SMALL_READ_BYTES
    return None


def _zstd_decoder() -> Any:
    # Files written with `zstd --long` need a window beyond the library's default.
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _unpack(path: Path, file: BinaryIO, new_decoder: Callable[[], Any], read_bytes: int) -> Iterator[Block]:
    """Unpack every member (gzip), stream (bzip2, xz) or frame (zstd); the libraries offer the same three attributes.

    Done by hand because zstandard's own stream reader takes a file that was cut short for a complete one.
    """
    decoder = new_decoder()
    while block := file.read(read_bytes):
        consumed = len(block)
        # Archivers may pad a finished member with zero bytes.
        while block := block.lstrip(b"\0") if decoder.eof else block:
            if decoder.eof:
                decoder = new_decoder()
            try:
                unpacked = decoder.decompress(block)
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:  # OSError: of bz2
                raise _damaged(path, error) from None
            yield unpacked, consumed
            consumed = 0
            block = decoder.unused_data
    if not decoder.eof:
        raise UserError(f"{path}: the compressed file ends too early; copy or download it again")


def _unzip(path: Path, file: BinaryIO, member: str) -> Iterator[Block]:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as inner:
            before = archive.getinfo(member).header_offset
            while block := inner.read(READ_BYTES):
                yield block, (place := file.tell()) - before
                before = place
    except RuntimeError:  # so says the library of a password, and NotImplementedError of a method it does not know
        raise UserError(f"{path}: {member} is encrypted or packed by an unknown method; unpack it first") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: object) -> UserError:
    return UserError(f"{path}: damaged compressed file ({error}); copy or download it again")

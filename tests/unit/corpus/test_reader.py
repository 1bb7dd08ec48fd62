"""Reading JSON Lines: what passes, what is counted, and where it is said to be."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from corpus import reader
from corpus.conversations import records
from corpus.formats import compression
from corpus.formats.detect import TextFile
from corpus.reader import Chunk, Parsed, parse_chunk, read_chunks

A = TextFile(Path("a"))
ODD_TEXTS = ["你好😀👨‍👩‍👧", "𠮷龘𰻝"]
ODD_TEXTS += ["a\u2028b\u0085c", "  spaces  ", 'quote " \\ \n\t\r end', "\ufeff inside", "\x00"]


def read_texts(path: Path, chunk_bytes: int = reader.CHUNK_BYTES) -> list[str]:
    return [text for chunk in read_chunks(TextFile(path), chunk_bytes) for text in parse_chunk(chunk).texts]


def problems_of(path: Path, chunk_bytes: int = reader.CHUNK_BYTES) -> list[tuple[int, str]]:
    return [problem for chunk in read_chunks(TextFile(path), chunk_bytes) for problem in parse_chunk(chunk).problems]


def as_lines(texts: list[str], end: str = "\n", **json_options: bool) -> bytes:
    return "".join(json.dumps({"text": t}, **json_options) + end for t in texts).encode()


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \t\n", "\r\n\r\n"])
def test_bom_line_ends_blank_lines_and_rare_characters_pass(tmp_path: Path, end: str, escaped: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + as_lines(ODD_TEXTS, end, ensure_ascii=escaped))
    assert read_texts(path) == ODD_TEXTS
    assert problems_of(path) == []


def test_files_glued_together_with_their_byte_order_marks_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + as_lines(["one"]) + b"\xef\xbb\xbf" + as_lines(["two"]))
    assert read_texts(path) == ["one", "two"]


def test_last_line_without_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(["one", "two"]).rstrip())
    assert read_texts(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".zst", lambda data: zstandard.ZstdCompressor().compress(data)),
        (".zst", lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data)),
    ],
)
def test_compressed_members_are_read_one_after_the_other(tmp_path: Path, suffix: str, compress) -> None:
    texts = [f"文档{i}" * 50 for i in range(3000)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(as_lines(texts[:1700])) + compress(as_lines(texts[1700:])))
    assert read_texts(path) == texts


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_file_cut_short_or_damaged_is_refused(tmp_path: Path, suffix: str) -> None:
    data = as_lines([str(i) * 100 for i in range(500)])
    whole = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"a\.jsonl.*ends too early"):
        read_texts(path)
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 0xFF
    path.write_bytes(bytes(broken))
    with pytest.raises(UserError, match=r"a\.jsonl.*damaged"):
        read_texts(path)


def test_each_fault_is_named_with_its_line(tmp_path: Path) -> None:
    lines = [
        (b'{"text": "good"}', None),
        (b'{"text": "cut', "broken_json"),
        (b"", None),
        (b'{"txt": "no key"}', "missing_text"),
        (b'{"text": 5}', "text_not_a_string"),
        (b'{"text": null}', "text_not_a_string"),
        (b'["a list"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"text": "\xff\xfe"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "lone_surrogate"),
        (b"[" * 100_000, "broken_json"),
        (b'{"text": "a"} {"text": "b"}', "broken_json"),
        (b'{"text": "also good"}', None),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join(line for line, _ in lines))
    expected = [(i, reason) for i, (_, reason) in enumerate(lines, 1) if reason]
    assert problems_of(path) == expected
    # line numbers go on from chunk to chunk
    assert problems_of(path, chunk_bytes=1) == expected
    assert {reason for _, reason in expected} == set(reader.REASONS) - set(records.REASONS)


@pytest.mark.parametrize("line", [b'\x1e{"text": "a"}', b'{"text": "b", "text": "a"}', b'{"text": "a", "x": NaN} \r'])
def test_odd_lines_that_pass(line: bytes) -> None:
    assert parse_chunk(Chunk(A, 1, line, 0)) == Parsed(["a"], [b"a"], [], lines=1)


@pytest.mark.parametrize("line", [b'{"text": "a"}\x0b', b'\xef\xbb\xbf\xef\xbb\xbf{"text": "a"}', b"9" * 5000])
def test_odd_lines_that_do_not_pass(line: bytes) -> None:
    assert parse_chunk(Chunk(A, 1, line, 0)) == Parsed([], [], [(1, "broken_json")], lines=1)


def test_empty_and_blank_texts_are_counted_and_not_a_fault() -> None:
    parsed = parse_chunk(Chunk(A, 1, b'{"text": ""}\n\n{"text": " "}\n', 0))
    assert (parsed.texts, parsed.problems, parsed.lines) == ([], [(1, "empty_text"), (3, "empty_text")], 2)


def test_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(["short"]) * 2 + b" " * 5 * 2**20)
    with pytest.raises(UserError, match=r"a\.jsonl:3: a line of more than 1 MB"):
        read_texts(path)


NOT_BLANK = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())


@given(st.lists(NOT_BLANK), st.integers(1, 300))
def test_chunks_give_every_document_once_whatever_their_size(tmp_path_factory, texts: list[str], size: int) -> None:
    path = tmp_path_factory.mktemp("chunks") / "a.jsonl"
    path.write_bytes(as_lines(texts, ensure_ascii=False))
    chunks = list(read_chunks(TextFile(path), size))
    assert read_texts(path, size) == texts
    assert b"".join(chunk.data for chunk in chunks) == path.read_bytes()
    assert sum(chunk.file_bytes for chunk in chunks) == path.stat().st_size


def test_a_bomb_is_unpacked_a_little_at_a_time(tmp_path: Path) -> None:
    """16 KB of Zstandard that hold 512 MB of empty lines: never more than a few chunks of them at once."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    data = b"".join(compressor.compress(b"\n" * 2**24) for _ in range(32)) + compressor.flush()
    assert len(data) < 2**16
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        lines = sum(len(chunk.data) for chunk in read_chunks(TextFile(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lines == 2**29 and peak < 2**28


@pytest.mark.parametrize("padding", range(9))
def test_zeros_between_members_wherever_a_block_ends(tmp_path: Path, padding: int, monkeypatch) -> None:
    monkeypatch.setattr(compression, "READ_BYTES", 7)
    path = tmp_path / "padded.jsonl.gz"
    member = gzip.compress(b'{"text": "a"}\n', mtime=0)
    path.write_bytes(member + bytes(padding) + member + bytes(20))
    assert [text for chunk in read_chunks(TextFile(path)) for text in parse_chunk(chunk).texts] == ["a", "a"]

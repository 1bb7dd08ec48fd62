"""Every format gives the same documents, and what cannot be read gets one sentence that says why and what to do."""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from corpus_data import fingerprint, make_texts, prepare
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from common.errors import UserError
from corpus import reader
from corpus.formats import arrow, structured_text
from corpus.formats.compression import read_blocks
from corpus.formats.find_files import files_of
from corpus.reader import parse_chunk, read_chunks, remarks, small_files_joined, text_files
from corpus.settings import PreparationSettings

TEXTS = [
    "春眠不觉晓，处处闻啼鸟。",
    '他说："好,\t好"。\n第二行\n\n新的一段',
    "𠮷野家 cafés <|endoftext|>",
    "a" * 3000,
    "[1] {x}",
]


def documents(path: Path, **settings: object) -> list[str]:
    found = []
    for file in PreparationSettings(**settings).files([path]):  # type: ignore[arg-type]
        for chunk in read_chunks(file):
            parsed = parse_chunk(chunk)
            assert not parsed.problems
            found += parsed.texts
    return found


def lines(texts: list[str], key: str = "text") -> str:
    return "".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts)


def table(texts: list[str], delimiter: str, end: str = "\r\n") -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerows([["text", "n"], *([text, i] for i, text in enumerate(texts))])
    return file.getvalue()


def write_parquet(path: Path, texts: list[str]) -> None:
    parquet.write_table(pyarrow.table({"n": range(len(texts)), "text": texts, "raw": [b"\xff"] * len(texts)}), path)


def write_arrow(path: Path, texts: list[str], new: Callable = ipc.new_stream) -> None:
    content = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
    with new(path, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


def write_zip(path: Path, texts: list[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.jsonl", lines(texts[2:]))
        archive.writestr("a/one.json", json.dumps([{"text": text} for text in texts[:2]]))
        archive.writestr("README.md", "no text of the corpus")


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "a.jsonl": lambda path, texts: path.write_text(lines(texts), encoding="utf-8"),
    "cr.jsonl": lambda path, texts: path.write_bytes(lines(texts).replace("\n", "\r").encode()),
    "a.jsonl.bz2": lambda path, texts: path.write_bytes(bz2.compress(lines(texts).encode())),
    "a.jsonl.xz": lambda path, texts: path.write_bytes(lzma.compress(lines(texts).encode())),
    "utf16.jsonl": lambda path, texts: path.write_text(lines(texts), encoding="utf-16"),
    "utf16le.jsonl": lambda path, texts: path.write_text(lines(texts), encoding="utf-16-le"),
    "gb.jsonl": lambda path, texts: path.write_text(lines(texts), encoding="gb18030"),
    "array.json": lambda path, texts: path.write_text(json.dumps([{"text": t} for t in texts]), encoding="utf-8"),
    "array.jsonl": lambda path, texts: path.write_text(json.dumps([{"text": t} for t in texts]), encoding="utf-8"),
    "pretty.json": lambda path, texts: path.write_text(
        json.dumps([{"n": [1, {"x": "]"}], "text": t} for t in texts], indent=2, ensure_ascii=False), encoding="utf-8"
    ),
    "objects.json": lambda path, texts: path.write_text(
        "\n".join(json.dumps({"text": t}, indent=1) for t in texts), encoding="gb18030"
    ),
    "commas.jsonl": lambda path, texts: path.write_text(lines(texts).replace("\n", ",\n"), encoding="utf-8"),
    "a.csv": lambda path, texts: path.write_bytes(b"\xef\xbb\xbf" + table(texts, ",").encode()),
    "semicolons.csv": lambda path, texts: path.write_bytes(table(texts, ";", "\n").encode("gb18030")),
    "a.tsv": lambda path, texts: path.write_bytes(table(texts, "\t").encode("utf-16")),
    "a.parquet": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": lambda path, texts: write_arrow(path, texts, ipc.new_file),
    "a.zip": write_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_documents_come_out_of_every_format(tmp_path: Path, name: str, monkeypatch) -> None:
    WRITERS[name](tmp_path / name, TEXTS)
    assert documents(tmp_path / name) == TEXTS
    # whatever the blocks that it is read in
    monkeypatch.setattr("corpus.formats.compression.READ_BYTES", 7)
    monkeypatch.setattr(structured_text, "_CHARACTERS_AT_ONCE", 50)
    monkeypatch.setattr(arrow, "_ROWS_AT_ONCE", 2)
    assert documents(tmp_path / name) == TEXTS
    file_bytes = sum(c.file_bytes for file in text_files([tmp_path / name]) for c in read_chunks(file))
    assert name == "a.zip" or file_bytes == (tmp_path / name).stat().st_size


def test_shards_do_not_depend_on_the_format(tmp_path: Path, tokenizer_json: Path) -> None:
    texts = make_texts(60)
    shards = set()
    for name in ("a.jsonl", "pretty.json", "a.csv", "a.parquet", "stream.arrow", "a.zip", "gb.jsonl"):
        WRITERS[name](tmp_path / name, texts)
        made = prepare([tmp_path / name], tmp_path / f"{name}.out", tokenizer=tokenizer_json, val_fraction=0.2)
        shards.add(tuple(shard.sha256 for split in made.splits.values() for shard in split.shards))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text + "\r\n", encoding="utf-8", newline="")
    made = prepare([folder], tmp_path / "txt.out", tokenizer=tokenizer_json, val_fraction=0.2)
    shards.add(tuple(shard.sha256 for split in made.splits.values() for shard in split.shards))
    assert len(shards) == 1


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.integers(1, 50))
def test_json_values_are_found_however_they_are_cut(texts: list[str], size: int) -> None:
    values = [{"text": text, "n": [1.5, None, {"a": "]}"}]} for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured_text, "_CHARACTERS_AT_ONCE", size)
        for layout in (json.dumps(values, indent=3), "\n\n".join(map(json.dumps, values)), json.dumps(values)):
            data = layout.encode()
            blocks = [(data[i : i + size], size) for i in range(0, len(data), size)]
            out = b"".join(block for block, _ in structured_text.json_values(blocks, "a.json"))
            assert [json.loads(line) for line in out.splitlines()] == values


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_the_column_of_a_fault_does_not_depend_on_the_blocks(size: int, monkeypatch) -> None:
    monkeypatch.setattr(structured_text, "_CHARACTERS_AT_ONCE", size)
    data = b'[{"a": 1},\n {"a": 2}, {"a": 3}, {a: 4}, 5, 6]'
    with pytest.raises(UserError, match=r"^x:2: record 4 is not JSON at column 23: no key in double quotes; "):
        list(structured_text.json_values([(data, len(data))], "x"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_plain_text_is_a_document_or_split_by_blank_lines(tmp_path: Path, end: str, monkeypatch) -> None:
    monkeypatch.setattr(structured_text, "_CHARACTERS_AT_ONCE", 5)
    monkeypatch.setattr("corpus.formats.compression.READ_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["", "第一段", "　第二行", " ", "", "另一段", "", ""]).encode())
    assert documents(path) == ["第一段\n　第二行\n \n\n另一段"]
    assert documents(path, split_txt=True) == ["第一段\n　第二行", "另一段"]
    assert any("is one document; with --split_txt" in remark for remark in remarks(text_files([path])))


@pytest.mark.parametrize("text", ["[1] {x}", "[注] 春", "{春} 眠", "{\n春"])
def test_plain_text_may_begin_with_a_bracket(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert documents(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_plain_text_may_begin_with_lines_of_json(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(end.join(['{"a": 1}', '{"b": 2}', *TEXTS[:1] * 3]), encoding="utf-8")
    assert documents(path) == [path.read_text(encoding="utf-8")]
    assert any("begins with JSON and is read as plain text" in remark for remark in remarks(text_files([path])))
    path.write_text(lines(TEXTS) + "{\n", encoding="utf-8")
    (file,) = text_files([path])
    assert (file.format, remarks([file])) == ("jsonl", [])


def test_big5_is_told_from_gb18030(tmp_path: Path) -> None:
    text = "從前有一座山，山裡有一座廟，廟裡有一個老和尚在講故事。"
    for codec in ("big5", "gb18030", "utf-16", "utf-8"):
        (tmp_path / "a.txt").write_bytes(text.encode(codec))
        assert documents(tmp_path / "a.txt") == [text]


def test_a_bad_byte_in_gb18030_spoils_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = [line.encode("gb18030") for line in lines(TEXTS).splitlines()]
    path.write_bytes(b"\n".join([whole[0], whole[1][:-8] + b"\xff" + whole[1][-8:], whole[2]]))
    (file,) = text_files([path])
    parsed = parse_chunk(next(read_chunks(file)))
    assert (parsed.texts, parsed.problems) == ([TEXTS[0], TEXTS[2]], [(2, "invalid_utf8")])
    assert remarks([file]) == [f"{path}: reads as GB18030"]


def test_the_key_is_guessed_where_only_one_has_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "url": "http://x", "score": 3, "content": "春"}\n', encoding="utf-8")
    (file,) = text_files([path])
    assert [text for chunk in read_chunks(file) for text in parse_chunk(chunk).texts] == ["春"]
    assert remarks([file]) == [f'{path}: the text is taken from "content" (not read: id, url, score)']
    assert documents(path, text_key="url") == ["http://x"]
    assert documents(path, text_template=r"{url}\n{content} {score}") == ["http://x\n春 3"]


def test_a_template_takes_null_as_nothing_and_counts_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "1", "b": null}\n{"a": null, "b": ""}\n{"a": "1"}\n{"a": "1", "b": [2]}\n', encoding="utf-8")
    (file,) = PreparationSettings(text_template="{a}-{b}-{a}").files([path])
    parsed = parse_chunk(next(read_chunks(file)))
    assert parsed.texts == ["1--1"]
    assert parsed.problems == [(2, "empty_text"), (3, "missing_text"), (4, "text_not_a_string")]
    assert reader.describe("missing_text", file.fields) == 'no key "a" or "b"'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"title": "x", "content": "春"}\n', r"keys are title, content: .*--text_key title.*--text_templ"),
        ("a.jsonl", '{"title": "x", "content": "春眠"}\n', r"--text_key content, or join .*\{title\}\\n\{content\}"),
        ("a.jsonl", '{"ids": [1, 2]}\n', 'no key "text", and no other with text; its keys are ids'),
        ("a.jsonl", "{'text': '春', 'n': None}\n", r"a\.jsonl:1: .*as Python prints it.*json\.dumps"),
        ("a.jsonl", '\n{"text": "a",}\n{"text": "b",}\n', r":2: .*the comma before the closing bracket"),
        ("a.json", '[\n{"text": "a"},\n{"text": "b",}\n]', r"a\.json:3: record 2 is not JSON.*comma before"),
        ("a.json", '[{"text": None}]', "record 1 is not JSON.*as Python prints it"),
        ("a.json", '[\n{"t": 1}, {"t": "a', r"json:2: record 2 is not JSON at column 17: a text without.*; copy"),
        ("a.json", '[{"t": 1}, {"t": ', r"record 2 is not JSON at column 18: the file ends in the middle.*; copy"),
        ("a.json", '[{"t": "a"},\n {t: 1}]', r"json:2: record 2 is not JSON at column 3: no key in double quotes; wr"),
        ("a.jsonl", "春眠不觉晓\n处处闻啼鸟\n", r"first line is 春眠不觉晓.*\.txt"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS pointer.*git lfs pull"),
        ("a.txt", "<!DOCTYPE html>\n<html>", "web page"),
        ("a.csv", "春眠不觉晓。,处处闻啼鸟。\n1,2\n", "keys are"),
        ("a.csv", "a,a\n1,2\n", "does not name the columns"),
        ("a.csv", 'text\n"open\n', r"a\.csv:2: not a row of a table"),
        ("a.bin", bytes(range(128, 256)) * 4, "not UTF-8, UTF-16, GB18030 or Big5"),
        ("a.pdf", "%PDF-1.7", "is a PDF"),
        ("a.parquet", b"PAR1 and no more", "damaged Parquet"),
        ("a.zip", b"PK\x03\x04 and no more", "damaged compressed"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        text_files([path])
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_pyarrow_is_needed_for_its_own_formats_alone(tmp_path: Path, monkeypatch) -> None:
    for name in ("a.parquet", "a.csv"):
        WRITERS[name](tmp_path / name, TEXTS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert documents(tmp_path / "a.csv") == TEXTS
    with pytest.raises(UserError, match=r"pip install -r requirements-formats\.txt"):
        documents(tmp_path / "a.parquet")


def test_folders_patterns_and_saved_data_sets(tmp_path: Path) -> None:
    (tmp_path / "news/.cache").mkdir(parents=True)
    for name in ("news/b.jsonl", "news/a.csv.gz", "news/README.md", "news/.cache/c.jsonl", "x1.txt", "x2.txt"):
        (tmp_path / name).touch()
    assert files_of(tmp_path / "news") == [tmp_path / "news/a.csv.gz", tmp_path / "news/b.jsonl"]
    assert files_of(tmp_path / "x*.txt") == [tmp_path / "x1.txt", tmp_path / "x2.txt"]
    given = text_files([tmp_path / "news", tmp_path / "x*.txt"], val_paths=[tmp_path / "x2.txt"])
    assert [(file.path.name, file.source) for file in given][::4] == [("x2.txt", -1), ("x2.txt", 1)]
    saved = tmp_path / "saved/train"
    saved.mkdir(parents=True)
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "state.json").write_text('{"_data_files": [{"filename": "d-1.arrow"}, {"filename": "d-0.arrow"}]}')
    for name in ("d-0.arrow", "d-1.arrow", "cache-7.arrow"):
        write_arrow(saved / name, [name])
    assert files_of(tmp_path / "saved") == [saved / "d-1.arrow", saved / "d-0.arrow"]
    (saved / "d-0.arrow").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"(?s)d-0\.arrow: named in state.*empty: neither.*none\*: no file.*gone: no such"
    ):
        text_files([tmp_path / name for name in ("saved", "empty", "none*", "gone")])


def test_the_fingerprint_knows_how_a_file_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv"):
        (tmp_path / name).write_text("text\n春\n", encoding="utf-8")
    prints = {fingerprint([tmp_path / name], split_txt=split) for name in ("a.txt", "a.csv") for split in (True, False)}
    assert len(prints) == 4


def test_an_archive_is_read_a_little_at_a_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", b"\n" * 2**24)
    assert max(len(block) for block, _ in read_blocks(tmp_path / "a.zip", "a.jsonl")) <= 2**16


def test_small_files_are_read_together_and_named_apart(tmp_path: Path) -> None:
    contents = ["春", "眠\n不", "觉".encode() + b"\xff" + "晓\n".encode() * 9, "a" * 300_000, "b" * 300_000]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    first, second = small_files_joined(text_files([tmp_path]))
    assert ([path.name for path in first.more], second.path.name) == (["1.txt", "2.txt", "3.txt"], "4.txt")
    (chunk,) = read_chunks(first)
    parsed = parse_chunk(chunk)
    assert (parsed.texts, parsed.problems) == ([contents[0], contents[1], contents[3]], [(3, "invalid_utf8")])
    assert first.place(3) == f"{tmp_path / '2.txt'}, record 1"
    assert chunk.file_bytes == sum((tmp_path / f"{number}.txt").stat().st_size for number in range(4))

"""A preparation that was killed, or made in parts: the same bytes as one made at once."""

from __future__ import annotations

import os
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus_data import make_texts, prepare

from common.errors import UserError
from corpus import partial_folder, pipeline, reader
from corpus.formats import compression
from corpus.partial_folder import Part, PartialFolder, Records
from corpus.pipeline import prepare_part
from corpus.settings import PreparationSettings
from prepare import parse_arguments

SETTINGS: dict[str, Any] = {"vocab_size": 300, "dedup": "near", "val_fraction": 0.1, "shard_tokens": 3000}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of some 50 documents in place of thousands."""
    monkeypatch.setattr(reader.read_chunks, "__defaults__", (4000,))
    monkeypatch.setattr(compression, "READ_BYTES", 1000)


@pytest.fixture
def sources(jsonl: Callable[..., Path]) -> list[Path]:
    """Two files with the same and with similar documents in both."""
    texts = make_texts(300)
    similar = [f"{text}　春。" for text in texts[250:]]
    return [
        jsonl([*texts, *texts[:3]], "a.jsonl"),
        jsonl([*texts[100:120], *similar, *make_texts(60, seed=1)], "b.jsonl"),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(sources: list[Path], tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of them, undisturbed."""
    prepare(sources, tmp_path / "whole", **SETTINGS)
    return contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "torn", [b"", b"\x40\0\0\0\0\0\0\0half of a record", bytes(range(100))], ids=["whole", "cut", "noise"]
)
def test_a_killed_preparation_continues(sources, tmp_path: Path, whole, monkeypatch, torn: bytes) -> None:
    """It is killed after every third record; what was recorded before is not done again."""
    append, work = Records.append, []
    left = 0

    def append_and_die(self: Records, *record: Any) -> None:
        nonlocal left
        append(self, *record)
        left -= 1
        if not left:
            with self._unfinished.open("ab") as file:
                file.write(torn)
            raise KeyboardInterrupt

    monkeypatch.setattr(Records, "append", append_and_die)
    for name in ("scan_chunk", "pack_chunk"):
        function = getattr(pipeline, name)
        monkeypatch.setattr(pipeline, name, lambda *task, f=function: (work.append(f), f(*task))[1])
    kills = 0
    while not (tmp_path / "out").exists():
        left = 3
        try:
            prepare(sources, tmp_path / "out", **SETTINGS)
        except KeyboardInterrupt:
            kills += 1
    assert contents(tmp_path / "out") == whole
    assert kills > 5 and 0 <= len(work) - 3 * kills < 3
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("count", [2, 5])  # as many parts as files, and more
def test_parts_are_joined_to_the_same_bytes(sources, tmp_path: Path, whole, count: int) -> None:
    def run(number: int) -> str:
        return prepare_part(
            sources, tmp_path / "out", PreparationSettings(**SETTINGS), Part(number, count), progress=None
        )

    assert run(1).startswith(f"part 1 of {count} is read (part")
    with pytest.raises(UserError, match=rf"holds {count} parts, and parts? 2.* must be read first"):
        prepare(sources, tmp_path / "out", **SETTINGS)
    for number in range(2, count):
        run(number)
    assert run(count).startswith(f"part {count} of {count} is packed (part")  # the last reader goes on
    said = [run(number) for number in range(1, count)]
    assert "(none to go)" in said[-1]
    prepare(sources, tmp_path / "out", **SETTINGS)
    assert contents(tmp_path / "out") == whole
    assert "nothing is left to do" in run(1)


def test_other_settings_are_not_continued(sources, tmp_path: Path, monkeypatch) -> None:
    settings = PreparationSettings(**SETTINGS)
    prepare_part(sources, tmp_path / "out", settings, Part(1, 2), progress=None)
    with pytest.raises(UserError, match="holds a preparation in 2 parts"):
        prepare_part(sources, tmp_path / "out", settings, Part(1, 3), progress=None)
    left = next(tmp_path.glob(".out.partial-*"))
    with (tmp_path / "said").open("w") as said:
        prepare(sources, tmp_path / "out", progress=said, **SETTINGS | {"dedup": "exact"})
    assert re.search(rf"{left}: left by .* other text or settings, not continued; rem", (tmp_path / "said").read_text())
    assert left.exists()


def test_two_processes_do_not_write_the_same_part(tmp_path: Path) -> None:
    first, second = (PartialFolder(tmp_path / "out", "f" * 64) for _ in range(2))
    with first.open(), pytest.raises(UserError, match="another process is preparing it"), second.open():
        pass
    assert first.path.exists()


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b"])
def test_a_part_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"argument --part: .* is no part: write 1/16 for the first of 16"):
        parse_arguments(["--input", "a", "--output", "b", "--part", text])


def test_records_that_were_copied_in_part_are_refused(tmp_path: Path) -> None:
    records = Records(tmp_path / "scan-1-of-1")
    records.append((0, 0), "a")
    records.finish()
    assert list(Records(records.path)) == [((0, 0), "a")]
    records.path.write_bytes(records.path.read_bytes()[:-1])
    with pytest.raises(UserError, match="scan-1-of-1: is cut off; copy it again"):
        list(Records(records.path))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


@pytest.mark.parametrize("content", [pickle.dumps(((0, 0), Harmful())), b"no pickle"])
def test_records_of_another_origin_run_no_code(tmp_path: Path, content: bytes) -> None:
    header = partial_folder._HEADER.pack(len(content), zlib.crc32(content))
    (tmp_path / "scan-1-of-1").write_bytes(header + content)
    with pytest.raises(UserError, match="scan-1-of-1: holds no records"):
        list(Records(tmp_path / "scan-1-of-1"))

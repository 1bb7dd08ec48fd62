"""What is no plain file, or too large for its kind, is told at once: never waited for, never read to its end."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import files
from common.errors import UserError
from corpus.formats.detect import TextFile
from corpus.reader import read_chunks
from corpus.shards import Corpus
from corpus.tokenizer import load_tokenizer
from training.config.load import load

SPARSE = 2**40


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(SPARSE)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A file that is read to its end ends the test, not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("make", [pipe, device, folder, loop])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(read_chunks(TextFile(path))),
        load_tokenizer,
        load,
        lambda path: Corpus.open(path.parent),
    ],
    ids=["text", "tokenizer", "configuration", "manifest"],
)
def test_no_plain_file(tmp_path: Path, read: Callable[[Path], object], make: Callable[[Path], None]) -> None:
    path = tmp_path / "manifest.json"
    make(path)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read.*(pipe or a device|folder|Too many)"):
        read(path)


@pytest.mark.parametrize(
    "read",
    [load_tokenizer, load, lambda path: Corpus.open(path.parent)],
    ids=["tokenizer", "configuration", "manifest"],
)
def test_too_large(tmp_path: Path, read: Callable[[Path], object]) -> None:
    huge(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read.*larger than \d+ MB"):
        read(tmp_path / "manifest.json")


@pytest.mark.parametrize("make", [pipe, device, folder, loop, huge])
@pytest.mark.parametrize("name", ["train-00000.bin", "tokenizer.json"])
def test_in_a_prepared_folder(prepared: Path, name: str, make: Callable[[Path], None]) -> None:
    (prepared / name).unlink()
    make(prepared / name)
    with pytest.raises(UserError, match=name):
        Corpus.open(prepared)


def test_links_may_not_lead_out_of_a_prepared_folder(prepared: Path, tmp_path: Path) -> None:
    shard = prepared / "train-00001.bin"
    for place, leads_out in ((prepared / "beside.bin", False), (tmp_path / "elsewhere.bin", True)):
        shard.rename(place)
        shard.symlink_to(place)
        if leads_out:
            with pytest.raises(UserError, match=r"train-00001\.bin: is a link that leads out of the folder"):
                Corpus.open(prepared, verify="size")
        else:
            Corpus.open(prepared)
        shard.unlink()
        place.rename(shard)
    (tmp_path / "link").symlink_to(prepared)
    Corpus.open(tmp_path / "link")


def test_impossible_names(tmp_path: Path) -> None:
    for name in ("\0", "\ud800", "x" * 300):
        with pytest.raises(OSError):
            files.open_regular(tmp_path / name)


def test_what_a_message_may_show() -> None:
    assert files.printable("a\x1b[31m\n\ud800长") == r"a\x1b[31m\n\ud800长"
    assert files.printable("x" * 500, 10) == "xxxxxxxxx…"

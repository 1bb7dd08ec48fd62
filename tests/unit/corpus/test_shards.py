"""Opening a prepared folder: rows of ids, and the refusal of anything that was tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from corpus.report import CorpusReport, lines, loss_to_beat
from corpus.shards import Corpus, TokenStream


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 7))
def test_rows_cover_the_stream_and_share_one_id(lengths: list[int], seq_len: int) -> None:
    ids = np.arange(sum(lengths), dtype=np.uint16)
    stream = TokenStream(np.split(ids, np.cumsum(lengths)[:-1]) if lengths else [])
    count = stream.num_rows(seq_len)
    assert (len(stream), count) == (len(ids), max(0, (len(ids) - 1) // seq_len))
    batch = stream.batch(range(count), seq_len)
    assert batch.shape == (count, seq_len + 1) and batch.dtype == np.int64
    for row, values in enumerate(batch):
        assert values.tolist() == ids[row * seq_len : row * seq_len + seq_len + 1].tolist()
    assert batch[:, 1:].ravel().tolist() == ids[1 : 1 + count * seq_len].tolist()
    assert stream.batch([*range(count)][::-1], seq_len).tolist() == batch[::-1].tolist()
    for wrong in (-1, count):
        with pytest.raises(IndexError):
            stream.batch([wrong], seq_len)


def test_opened_folder_serves_the_ids_of_its_shards(prepared: Path) -> None:
    corpus = Corpus.open(prepared)
    shards = corpus.manifest.splits["train"].shards
    assert len(shards) > 3
    ids = np.concatenate([np.fromfile(prepared / shard.file, "<u2") for shard in shards])
    stream = corpus.split("train")
    assert len(stream) == len(ids) == corpus.manifest.splits["train"].tokens
    assert stream.batch([0], len(ids) - 1)[0].tolist() == ids.tolist()
    assert stream.batch([15], 64).tolist() == [ids[960:1025].tolist()]  # over the edge of a shard
    assert 0 < len(corpus.split("val")) < len(stream)
    assert corpus.tokenizer_path == prepared / "tokenizer.json"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["train-00000.bin", "train-00002.bin", "val-00000.bin", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut, r"bytes instead of|SHA-256 differs"), (flip, "SHA-256 differs"), (Path.unlink, "cannot be read")],
)
def test_damaged_file_is_refused_by_name(
    prepared: Path, file: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(prepared / file)
    with pytest.raises(UserError, match=rf"{file}: .*({message})"):
        Corpus.open(prepared)


def test_size_check_finds_missing_and_cut_files_alone(prepared: Path) -> None:
    flip(prepared / "train-00000.bin")
    Corpus.open(prepared, verify="size")
    cut(prepared / "train-00000.bin")
    with pytest.raises(UserError, match=r"train-00000\.bin: 1,998 bytes instead of 2,000"):
        Corpus.open(prepared, verify="size")
    with pytest.raises(ValueError, match="verify"):
        Corpus.open(prepared, verify="no")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/hostname", "..", "", "sub/x.bin", "..\\x.bin", "C:x.bin", 5])
def test_shard_outside_the_folder_is_refused(prepared: Path, name: object) -> None:
    edit(prepared, lambda data: data["splits"]["train"]["shards"][0].update(file=name))
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        Corpus.open(prepared)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("vocab_size"),
        lambda data: data.update(format=99),
        lambda data: data.update(vocab_size="many"),
        lambda data: data.update(splits=[]),
        lambda data: data["splits"].pop("val"),
        lambda data: data.pop("ngram_baselines"),
        lambda data: data["ngram_baselines"].pop("bigram"),
        lambda data: data["ngram_baselines"].update(bytes_per_token=0),
        lambda data: data["ngram_baselines"].update(unigram="low"),
        lambda data: data["splits"]["train"].update(tokens=3),
        lambda data: data["splits"]["train"]["shards"][0].update(tokens=-1),
        lambda data: data["splits"]["train"]["shards"][0].pop("sha256"),
        lambda data: data["splits"]["train"]["shards"].pop(),
    ],
)
def test_wrong_manifest_is_refused(prepared: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(prepared, change)
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest of this version"):
        Corpus.open(prepared)


def test_broken_and_missing_manifest_are_refused(prepared: Path, tmp_path: Path) -> None:
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        Corpus.open(prepared)
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        Corpus.open(tmp_path)


JUNK = [None, True, -1, 1.5, 10**400, float("inf"), float("nan"), "many", "\ud800", "\x1b[31m", [], {}, [1], {"a": 1}]
PLACES = [
    *(("vocab_size",), ("bos_id",), ("eos_id",), ("pad_id",), ("entropy_nats",), ("exact_duplicates",)),
    *(("dropped_in_val",), ("skipped",), ("settings",), ("settings", "dedup"), ("fingerprint",), ("format",)),
    *(
        ("tokenizer_sha256",),
        ("tokenizer_source",),
        ("ngram_baselines",),
        ("ngram_baselines", "bigram"),
        ("ngram_baselines", "tokens"),
    ),
    *(("splits",), ("splits", "val"), ("splits", "train", "shards"), ("splits", "train", "tokens")),
    *(("splits", "train", "bytes"), ("splits", "val", "characters_per_token"), ("splits", "train", "shards", 0)),
    *(("splits", "train", "shards", 0, "file"), ("splits", "train", "shards", 0, "tokens")),
    ("splits", "train", "shards", 0, "sha256"),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_junk_at_any_place_is_refused_or_shown(prepared: Path, place: tuple[str | int, ...]) -> None:
    """What is let through must be usable; the report formats all of it."""
    original = (prepared / "manifest.json").read_text()
    found = CorpusReport.read(prepared)
    for junk in JUNK:
        data = json.loads(original)
        target = data
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = junk
        (prepared / "manifest.json").write_text(json.dumps(data))
        try:
            corpus = Corpus.open(prepared, verify="size")
        except UserError as error:
            assert "manifest.json: " in str(error) and len(str(error)) < 500
            assert str(error).replace(str(prepared), "").isprintable()
        else:
            lines(corpus.manifest, found)
            loss_to_beat(corpus.manifest)
            assert [len(corpus.split(name)) for name in ("train", "val")]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", '{"format": 1e999}', "null", '"x"'])
def test_json_that_python_chokes_on_is_refused(prepared: Path, text: str) -> None:
    (prepared / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: .{1,300}; prepare the corpus again$"):
        Corpus.open(prepared)


def agree(folder: Path, name: str) -> None:
    """Make the manifest say what the file holds, as a forger would."""

    def change(data: dict[str, Any]) -> None:
        split = data["splits"]["train"]
        for shard in split["shards"]:
            if shard["file"] == name:
                content = (folder / name).read_bytes()
                shard.update(tokens=len(content) // 2, sha256=sha256(content).hexdigest())
        split["tokens"] = sum(shard["tokens"] for shard in split["shards"])

    edit(folder, change)


def test_an_id_beyond_the_vocabulary_is_found(prepared: Path) -> None:
    np.array([1, 5, 65535, 2], "<u2").tofile(prepared / "train-00001.bin")
    agree(prepared, "train-00001.bin")
    with pytest.raises(UserError, match=r"train-00001\.bin: holds the id 65,535, beyond the 359 that there are"):
        Corpus.open(prepared)


def test_a_shard_of_nothing_is_refused(prepared: Path) -> None:
    (prepared / "train-00001.bin").write_bytes(b"")
    agree(prepared, "train-00001.bin")
    with pytest.raises(
        UserError, match=r"manifest\.json: .*splits\.train\.shards\.1\.tokens: input should be greater than 0"
    ):
        Corpus.open(prepared)


def test_the_shards_are_those_that_prepare_writes(prepared: Path) -> None:
    edit(prepared, lambda data: data["splits"]["train"]["shards"].reverse())
    with pytest.raises(UserError, match=r"manifest\.json: .*instead of 'train-00000\.bin'"):
        Corpus.open(prepared)


def test_a_shard_that_cannot_be_mapped_is_a_sentence(prepared: Path) -> None:
    corpus = Corpus.open(prepared)
    (prepared / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: cannot be mapped into memory"):
        corpus.split("train")

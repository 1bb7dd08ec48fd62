"""--dedup and --repetition of train.py: what they ask of the preparation."""

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.console import Console
from common.errors import UserError
from corpus import shards
from corpus.manifest import Manifest
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from training.config.command_line import Options, options, parse
from training.data import open_corpus, prepare_data
from training.processes.process_group import World

ROOT = Path(__file__).resolve().parents[3]
TEXT = "床前明月光，疑是地上霜。举头望明月，低头思故乡。白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
COPY = "床前明月光，疑是地上霜；舉頭望明月，低頭思故鄉。白日依山盡，黃河入海流。欲窮千里目，更上一層樓！"
OTHER = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"


def options_of(tmp_path: Path, *flags: str) -> Options:
    source = tmp_path / "texts.jsonl"
    texts = [TEXT, COPY, OTHER, OTHER, "红豆生南国，" * 40]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return options(parse(["--data", str(source), "--vocab_size", "300", *flags], ""), {})


def prepared(tmp_path: Path, *flags: str) -> Manifest:
    given = options_of(tmp_path, *flags)
    return Manifest.read(prepare_data(given, "cpu", Console(0, io.StringIO())))


@pytest.mark.parametrize(
    ("flags", "documents"),
    [([], 3), (["--dedup", "none"], 4), (["--dedup", "near"], 2), (["--dedup", "near", "--repetition", "keep"], 3)],
)
def test_flags_reach_the_preparation(tmp_path, monkeypatch, flags, documents):
    monkeypatch.chdir(tmp_path)
    manifest = prepared(tmp_path, *flags)
    assert sum(split.documents for split in manifest.splits.values()) == documents


def test_another_choice_is_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {prepared(tmp_path, *flags).fingerprint for flags in ([], ["--dedup", "exact"], ["--repetition", "keep"])}
    assert len(names) == 2 == len(list((tmp_path / "data").iterdir()))


def test_shards_are_hashed_once(tmp_path, monkeypatch):
    """As they are written, or as they are used again; and those of another rank's machine, or that were given."""
    monkeypatch.chdir(tmp_path)
    check, hashed = shards._check_numbers, []

    def counted(folder, name, kind, count, beyond, sha256):
        hashed.extend([name] if sha256 else [])
        check(folder, name, kind, count, beyond, sha256)

    monkeypatch.setattr(shards, "_check_numbers", counted)
    text = options_of(tmp_path)
    given = options(parse(["--data", str(prepare_data(text, "cpu", Console(0, io.StringIO())))], ""), {})
    rank0, elsewhere, beside = World(0, 3, 0, 2), World(2, 3, 0, 1), World(1, 3, 1, 2)
    for which, world, times in [(text, rank0, 1), (given, rank0, 1), (text, elsewhere, 1), (text, beside, 0)]:
        hashed.clear()
        folder = prepare_data(which, "cpu", Console(0, io.StringIO())) if world.rank == 0 else given.data[0]
        open_corpus(which, folder, world)
        assert hashed.count("train-00000.bin") == times


@pytest.mark.parametrize("flag", ["--dedup", "--repetition"])
def test_a_word_that_is_no_choice(flag):
    with pytest.raises(UserError, match="'fuzzy' must be one of "):
        parse([flag, "fuzzy"], "")


@pytest.mark.slow
def test_a_killed_preparation_of_train_continues(tmp_path, monkeypatch):
    """After SIGKILL the same text again: what was done is taken, and the bytes are those of one go."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0).choices
    texts = ("".join(draw(TEXT + OTHER, k=300)) for _ in range(6000))  # 5 MB
    Path("a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    flags = ["--data", "a.jsonl", "--vocab_size", "300"]
    training = subprocess.Popen([sys.executable, ROOT / "train.py", *flags], stdout=subprocess.PIPE)
    while not any(path.stat().st_size for path in tmp_path.glob("data/.a-*.partial-*/scan-*")):
        assert training.poll() is None and not any(tmp_path.glob("data/a-*"))
        time.sleep(0.005)
    training.kill()
    training.communicate()
    said = io.StringIO()
    folder = prepare_data(options(parse(flags, ""), {}), "cpu", Console(0, said))
    assert "continuing what was done before" in said.getvalue()
    prepare([Path("a.jsonl")], tmp_path / "whole", PreparationSettings(vocab_size=300), progress=None)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    assert all((folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)

"""--dedup and --repetition of train.py: what they ask of the preparation."""

import io
import json
from pathlib import Path

import pytest

from common.console import Console
from common.errors import UserError
from corpus.manifest import Manifest
from training.config.command_line import options, parse
from training.data import prepare_data

TEXT = "床前明月光，疑是地上霜。举头望明月，低头思故乡。白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
COPY = "床前明月光，疑是地上霜；舉頭望明月，低頭思故鄉。白日依山盡，黃河入海流。欲窮千里目，更上一層樓！"
OTHER = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"


def prepared(tmp_path: Path, *flags: str) -> Manifest:
    source = tmp_path / "texts.jsonl"
    texts = [TEXT, COPY, OTHER, OTHER, "红豆生南国，" * 40]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    given = options(parse(["--data", str(source), "--vocab_size", "300", *flags], ""), {})
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


@pytest.mark.parametrize("flag", ["--dedup", "--repetition"])
def test_a_word_that_is_no_choice(flag):
    with pytest.raises(UserError, match="'fuzzy' must be one of "):
        parse([flag, "fuzzy"], "")

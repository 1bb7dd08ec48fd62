"""What the preparation part measures with, and concludes from seconds."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmarks.speed import preparation
from common.errors import UserError


def test_text_is_repeated_with_a_number_so_that_no_document_is_twice(tmp_path):
    source = tmp_path / "a.jsonl.gz"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.write('{"text": "春眠不觉晓"}\n{"text": "处处闻啼鸟"}\n')
    size, count = preparation.write_text(tmp_path / "out.jsonl", [source], 200)
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(set(texts)) == len(texts) == count > 4
    assert size == sum(len(text.encode()) for text in texts) >= 200


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--preparation_text .*none\.jsonl"):
        preparation.write_text(tmp_path / "out.jsonl", [tmp_path / "none.jsonl"], 10)


def test_shares_are_of_medians():
    rounds = [
        {"read": 1.0, "encode": 9.0, "prepare": 10.0},
        {"read": 1.0, "encode": 8.0, "prepare": 20.0},
        {"read": 1.0, "encode": 99.0, "prepare": 11.0},
    ]
    found = preparation.row(2, 22_000_000, rounds)
    assert found["prepare_mb_s"] == pytest.approx(2.0)
    assert found["share_of_encode"] == pytest.approx(9 / 11)
    assert found["share_of_read_and_encode"] == pytest.approx(10 / 11)
    lines = preparation.table({"rows": [found], "bytes": 22_000_000, "documents": 5, "rounds": 3, "text": ["a"]})
    assert lines[-1] == "| 2 | 2.00 | 2.44 | 82% | 2.20 | 91% |"


@pytest.mark.slow
def test_the_bare_side_counts_every_token(tmp_path):
    preparation.write_text(tmp_path / "out.jsonl", None, 20_000)
    preparation._train(tmp_path / "out.jsonl", tmp_path / "tokenizer.json")
    found = preparation._bare(tmp_path / "tokenizer.json", tmp_path / "out.jsonl", 1)
    assert 1_000 < found["tokens"] < 20_000
    assert found["encode"] > 0

"""manifest.json and report.json of folders that were prepared before 2026-11-29, when some keys had other names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corpus.manifest import Manifest
from corpus.report import CorpusReport

OLD_MANIFEST = r"""{
  "format": 2, "fingerprint": "5a00e875a15abf2a7ac315f73cf46a6b7ad012e53f93d083ef5549a1d7266cda",
  "settings": {"dedup": "near", "max_bad_share": 0.01, "repetition": "drop", "shard_tokens": 67108864,
    "val_fraction": 0.005, "vocab_size": 2000},
  "inputs": [{"file": "docs\udcd6.jsonl", "side": "train", "bytes": 1615074}],
  "vocab_size": 2000, "begin_id": 1, "end_id": 2, "pad_id": 0,
  "tokenizer_sha256": "665d8ceb8318a8fc840ff9816164ca4c60250f84c2de2977224c606d1bd68097",
  "tokenizer_source": "trained on the 1,272 training documents (1,196,073 bytes) with the smallest hashes",
  "entropy_nats": 6.526222,
  "ladder": {"uniform": 7.600902, "unigram": 6.51881, "bigram": 3.98399, "trigram": 3.139665,
    "bytes_per_token": 2.930285, "tokens": 2667, "train_tokens": 420511},
  "exact_duplicates": 14, "dropped_in_val": 0, "skipped": {}, "bad_lines": ["docs\udcd6.jsonl:3: broken JSON"],
  "splits": {
    "train": {"documents": 1272, "bytes": 1196073, "characters": 798182, "tokens": 420511,
      "characters_per_token": 1.8981, "shards": [{"file": "train-00000.bin", "tokens": 420511,
      "sha256": "3323d7d8c4b1a0121890cfdffe17bdf59232ededb7eee5e6c6e9573d586c078f"}]},
    "val": {"documents": 10, "bytes": 7818, "characters": 5404, "tokens": 2668,
      "characters_per_token": 2.0255, "shards": [{"file": "val-00000.bin", "tokens": 2668,
      "sha256": "7ed346e8fdfa804cf4478d77c97f71ba733d1e4a03e7f627e13ad713f8ec67c3"}]}}
}"""

OLD_REPORT = """{
  "version": 1, "documents": 1282, "tokens": 423179, "bytes": 1203891, "characters": 803586,
  "lengths": {"tokens": {"min": 43, "p10": 175, "p50": 312, "p90": 439, "p99": 1004, "max": 5592},
    "histogram": {"edges": [32, 64, 8192], "counts": [7, 1275]}},
  "duplicates": {"exact": 14, "near": 194, "near_in_val": 5,
    "examples": [{"kept": "膨胀比例大小", "dropped": "步长大小", "similarity": 0.5078}]},
  "repetition": {"scored": 1486, "dropped": 10, "thresholds": {"lines": 0.5, "runs": 32.0},
    "by_rule": {"lines": 0, "ngrams": 9}, "shares": {"lines": {"p50": 0.0, "p90": 0.023}, "runs": {"p50": 2, "p90": 3}},
    "examples": [{"rule": "ngrams", "value": 0.8273, "text": "BCELoss 层"}]},
  "scripts": {"latin": 0.412839, "han": 0.222381, "other": 5e-06}, "traditional_share": 0.000497,
  "languages": {"zh-Hans": 0.704368, "latin": 0.295632}, "characters_per_token": {"train": 1.8981, "val": 2.0255},
  "ladder": {"uniform": {"nats": 7.600902, "bits_per_byte": 3.742224},
    "trigram": {"nats": 3.139665, "bits_per_byte": 1.545781}}
}"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(OLD_MANIFEST)
    (tmp_path / "report.json").write_text(OLD_REPORT, encoding="utf-8")
    return tmp_path


def test_an_old_manifest_is_read_and_written_with_todays_keys(old: Path) -> None:
    manifest = Manifest.read(old)
    assert (manifest.bos_id, manifest.eos_id, manifest.pad_id) == (1, 2, 0)
    assert manifest.ngram_baselines is not None and manifest.ngram_baselines.trigram == 3.139665
    assert manifest.bad_lines == [r"docs\udcd6.jsonl:3: broken JSON"]
    manifest.write(old)
    written = json.loads((old / "manifest.json").read_text())
    assert written["bos_id"] == 1 and written["eos_id"] == 2 and written["ngram_baselines"]["tokens"] == 2667
    assert not {"begin_id", "end_id", "ladder"} & written.keys()
    assert Manifest.read(old) == manifest


def test_an_old_report_is_read_and_written_with_todays_keys(old: Path) -> None:
    report = CorpusReport.read(old)
    assert report.ngram_baselines is not None and report.ngram_baselines["trigram"].bits_per_byte == 1.545781
    report.write(old)
    written = json.loads((old / "report.json").read_text(encoding="utf-8"))
    expected = json.loads(OLD_REPORT)
    expected["ngram_baselines"] = expected.pop("ladder")
    expected |= {"left_out": None, "changed": 0, "changed_example": "", "special_tokens": 0, "unused_entries": None}
    assert written == expected

"""The fingerprint: what a prepared folder is known by again, also one that was prepared by an earlier version."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_data import fingerprint


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"a.jsonl": '{"text": "春眠不觉晓"}\n', "b.jsonl": '{"text": "b"}\n', "t.json": "{}"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return {name: tmp_path / name for name in contents}


def test_fingerprints_are_those_of_folders_prepared_before(files: dict[str, Path]) -> None:
    """The values are of the version before `PreparationSettings` (513393a)."""
    a, b, tokenizer = files.values()
    changed = {"vocab_size": 2000, "val_fraction": 0.02, "max_bad_share": 0.5, "shard_tokens": 1000}
    changed |= {"dedup": "near", "repetition": "keep"}
    given = {"tokenizer": tokenizer, "val_inputs": [b]}
    assert fingerprint([a, b]) == "53d8c59c7468a48d77d16db07aed59cd62311fe0ec3990844bbb216777ac62d7"
    assert fingerprint([a], **changed) == "193346a7af95f10486c8a0d373945c03d5c9d9a19ffe3cee73a993a2b68dc3b6"
    assert fingerprint([a], **given) == "2bb5dd18386983031a6251b486081f0581213d44453c4f24a0b042a5493d8c82"


def test_values_that_a_file_makes_idle_do_not_count(files: dict[str, Path]) -> None:
    a, b, tokenizer = files.values()
    given = {"tokenizer": tokenizer, "val_inputs": [b]}
    expected = fingerprint([a], **given)
    assert fingerprint([a], **given, vocab_size=300, val_fraction=0.5) == expected
    assert fingerprint([a], **given, shard_tokens=5) != expected

"""Conversations through the whole preparation: masks beside the shards, a report, nothing changed without them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from corpus_data import make_texts, prepare, write_jsonl

from common.errors import UserError
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.records import read_conversation
from corpus.manifest import Manifest
from corpus.report import CorpusReport, lines
from corpus.shards import Corpus, MaskedStream, TokenStream
from corpus.tokenizer import load_tokenizer


def chats(count: int) -> list[dict[str, object]]:
    """Conversations in turn in each of the shapes; every tenth answer is its question."""
    found: list[dict[str, object]] = []
    for i, text in enumerate(make_texts(count, seed=5)):
        answer = text if i % 10 == 0 else f"答{i}"
        found.append(
            [
                {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]},
                {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]},
                {"instruction": text, "input": "", "output": answer},
            ][i % 3]
        )
    return found


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def mixed(tmp_path: Path, tokenizer_json: Path) -> Path:
    """Chats in three shapes, texts in another file and one file with both."""
    inputs = [
        write(tmp_path / "chats.jsonl", chats(90)),
        write_jsonl(tmp_path / "texts.jsonl", make_texts(30)),
        write(tmp_path / "both.jsonl", [{"text": "一篇短文"}, chats(91)[-1], {"messages": "x"}, {"messages": []}]),
    ]
    options = {"tokenizer": tokenizer_json, "val_fraction": 0.2, "shard_tokens": 700, "max_bad_share": 0.1}
    prepare(inputs, tmp_path / "mixed", **options)
    return tmp_path / "mixed"


def documents(corpus: Corpus) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return the mask of every document of both splits by its ids."""
    found = {}
    for name in ("train", "val"):
        stream = corpus.split(name)
        assert isinstance(stream, MaskedStream)
        ids, mask = stream.read(0, len(stream)), stream.mask.read(0, len(stream))
        starts = [0, *(np.flatnonzero((ids[:-1] == 2) & (ids[1:] == 1)) + 1).tolist(), len(ids)]
        for start, end in itertools.pairwise(starts):
            found[tuple(ids[start:end].tolist())] = tuple(mask[start:end].tolist())
    return found


def test_every_document_has_the_mask_of_its_kind(mixed: Path, tokenizer_json: Path) -> None:
    encoder, found = ConversationEncoder(load_tokenizer(tokenizer_json)), documents(Corpus.open(mixed))
    for ids, mask in encoder.encode([read_conversation(record) for record in chats(91)]):
        assert found.pop(tuple(ids)) == tuple(mask)
    assert len(found) == 31 and all(set(mask) == {1} for mask in found.values())


def test_what_cannot_be_read_is_counted_and_named(mixed: Path) -> None:
    manifest = Manifest.read(mixed)
    assert manifest.skipped == {"broken_conversation": 1, "no_answer": 1}
    assert manifest.bad_lines[1].endswith("both.jsonl:4: a conversation without an answer")


def test_the_report_says_what_counts(mixed: Path) -> None:
    manifest, report = Manifest.read(mixed), CorpusReport.read(mixed)
    found = report.conversations
    assert found and (found.conversations, found.turns, found.answers, found.copied) == (91, 182, 91, 10)
    answers = [split.answers for split in manifest.splits.values()]
    assert found.targets == sum(answer.targets for answer in answers if answer)
    assert "10 answers stand word for word in the turn before them" in " ".join(
        "\n".join(lines(manifest, report)).split()
    )
    texts = sum(len(text.encode()) for text in [*make_texts(30), "一篇短文"])
    spoken = sum(len(turns[-1].content.encode()) for turns in map(read_conversation, chats(91)))
    assert sum(answer.target_bytes for answer in answers if answer) == texts + spoken


def test_baselines_are_those_of_the_targets(mixed: Path) -> None:
    manifest = Manifest.read(mixed)
    val = manifest.splits["val"]
    assert manifest.ngram_baselines and val.answers
    assert val.answers.targets - 1 <= manifest.ngram_baselines.tokens <= val.answers.targets < val.tokens
    assert manifest.ngram_baselines.bytes_per_token == pytest.approx(
        val.answers.target_bytes / val.answers.targets, rel=1e-6
    )


def test_a_folder_with_masks_is_reused(mixed: Path, tmp_path: Path, tokenizer_json: Path) -> None:
    inputs = [tmp_path / f"{name}.jsonl" for name in ("chats", "texts", "both")]
    options = {"tokenizer": tokenizer_json, "val_fraction": 0.2, "shard_tokens": 700, "max_bad_share": 0.1}
    before = {path.name: path.stat().st_mtime_ns for path in mixed.iterdir()}
    prepare(inputs, mixed, **options)
    assert before == {path.name: path.stat().st_mtime_ns for path in mixed.iterdir()}
    assert {path.suffix for path in mixed.iterdir()} == {".bin", ".mask", ".json"}


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_mask_is_named(mixed: Path, damage: str) -> None:
    path = mixed / "train-00000.mask"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "cut" else bytes([1 - data[0]]) + data[1:])
    with pytest.raises(UserError, match=r"train-00000\.mask: .*; prepare the corpus again"):
        Corpus.open(mixed)


def test_texts_alone_get_no_masks(prepared: Path) -> None:
    made = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    assert all("answers" not in split for split in made["splits"].values())
    assert "conversations" not in json.loads((prepared / "report.json").read_text(encoding="utf-8"))
    assert not list(prepared.glob("*.mask")) and type(Corpus.open(prepared).split("train")) is TokenStream


def test_a_key_that_is_asked_for_makes_texts_of_conversations(tmp_path: Path, tokenizer_json: Path) -> None:
    source = write(tmp_path / "alpaca.jsonl", [{"instruction": t, "output": "好"} for t in make_texts(40)])
    manifest = prepare([source], tmp_path / "texts", tokenizer=tokenizer_json, text_key="instruction")
    assert manifest.splits["train"].answers is None

"""Mixtures: weights as they are written, the rows of each source, and shares that come out as asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus_data import make_texts, prepare
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from corpus.mixture import SourceRows, counts_of_epoch, rows_of_epoch, split_weights
from corpus.report import CorpusReport, lines
from corpus.shards import Corpus, MaskedStream, TokenStream
from training.data import packing_line
from training.data_sampler import SampleStream


def test_weights_are_scaled_and_paths_with_colons_are_paths(tmp_path: Path) -> None:
    assert split_weights([Path("a.jsonl:0.7"), Path("b c.parquet:2.1")]) == (
        [Path("a.jsonl"), Path("b c.parquet")],
        pytest.approx((0.25, 0.75)),
    )
    assert split_weights([Path("a.jsonl"), Path("x:y")]) == ([Path("a.jsonl"), Path("x:y")], ())
    there = tmp_path / "a:1"
    there.touch()
    assert split_weights([there]) == ([there], ())
    for other in ("b.jsonl", "b.jsonl:0"):
        with pytest.raises(UserError, match=r"b\.jsonl(:0)?: give every source a weight above 0, such as a\.jsonl:1"):
            split_weights([Path("a.jsonl:1"), Path(other)])


SOURCES = st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 1)), min_size=1, max_size=5)


@given(SOURCES, st.integers(0, 3))
def test_an_epoch_has_the_shares_that_were_asked_for(sources: list[tuple[int, float]], seed: int) -> None:
    total = sum(weight for _, weight in sources)
    first, found = 0, []
    for count, weight in sources:
        found.append(SourceRows("s", first, count, weight / total))
        first += count
    counts = counts_of_epoch(found)
    assert sum(counts) == first
    seen: Counter[int] = Counter()
    for epoch in range(4):
        rows = rows_of_epoch(found, epoch, seed).tolist()
        assert len(rows) == first
        for source, count in zip(found, counts, strict=True):
            own = [row for row in rows if source.first <= row < source.first + source.count]
            assert len(own) == count and abs(count - source.weight * first) < 1
        seen.update(rows)
    for source in found:  # no row is seen twice more often than another of its source
        times = [seen[row] for row in range(source.first, source.first + source.count)]
        assert max(times) - min(times) <= 1


def test_rows_belong_to_the_source_of_their_first_token() -> None:
    assert TokenStream([np.zeros(101, np.uint16)]).rows_of_parts([25, 10, 66], 10) == [3, 1, 6]
    assert TokenStream([np.zeros(29, np.uint16)]).rows_of_parts([21, 8], 10) == [2, 0]


def test_rows_of_conversations_hold_no_two_sources() -> None:
    """BOS, a question, an answer (6, a target), EOS: five ids each, in rows of two documents."""
    ids = np.array([1, 5, 6, 6, 2] * 10, np.uint16)
    mask = np.array([0, 0, 1, 1, 1] * 10, np.uint8)
    stream = MaskedStream([ids], [mask], bos_id=1, eos_id=2, pad_id=0, parts=[15, 35])
    assert stream.rows_of_parts([15, 35], 9) == [2, 4]
    first, second = (
        sorted(start for row in rows for start, _ in stream.packed(9).parts(row)) for rows in (range(2), range(2, 6))
    )
    assert first == [0, 5, 10] and second == list(range(15, 50, 5))
    assert stream.batch(range(6), 9).shape == (6, 10) and stream.targets(range(6), 9) == 30
    whole = MaskedStream([ids], [mask], bos_id=1, eos_id=2, pad_id=0)
    assert whole.num_rows(9) == 5 and len(whole.packed(9).parts(4)) == 2


def test_prepared_sources_are_read_by_their_weights(tmp_path: Path, jsonl, tokenizer_json: Path) -> None:
    a, b = jsonl(make_texts(200), "a.jsonl"), jsonl(make_texts(50, seed=1), "b.jsonl")
    out = tmp_path / "out"
    settings = {"tokenizer": tokenizer_json, "val_fraction": 0.1}
    plain = prepare([a, b], tmp_path / "plain", **settings)
    manifest = prepare([a, b], out, **settings, weights=(0.5, 0.5))
    assert [shard.sha256 for shard in manifest.splits["train"].shards] == [
        shard.sha256 for shard in plain.splits["train"].shards
    ]
    assert plain.sources is None and plain.fingerprint != manifest.fingerprint
    assert manifest.sources is not None and [source.name for source in manifest.sources] == ["a.jsonl", "b.jsonl"]
    assert sum(source.documents for source in manifest.sources) == manifest.splits["train"].documents
    corpus = Corpus.open(out)
    assert corpus.manifest == manifest and Corpus.open(tmp_path / "plain").source_rows(16) == []
    rows = corpus.split("train").num_rows(16)
    sources = corpus.source_rows(16)
    assert (sources[0].first, sources[1].first) == (0, sources[0].count) and sources[1].first + sources[1].count == rows
    with pytest.raises(UserError, match=r"^b\.jsonl: less than a row of 3000 tokens"):
        corpus.source_rows(3000)
    order = [SampleStream(rows, 7, sources)[i] for i in range(3 * rows)]
    again = SampleStream(rows, 7, sources)
    assert [again[i] for i in reversed(range(3 * rows))] == order[::-1]  # wherever a run continues
    share = sum(row < sources[1].first for row in order) / len(order)
    assert share == pytest.approx(0.5, abs=1 / rows)
    said = " ".join(" ".join(lines(manifest, CorpusReport.read(out))).split())
    assert "50.0 % of the rows from b.jsonl (" in said and "times an epoch" in said


def test_a_run_says_what_share_of_the_loss_each_source_has(tmp_path: Path, jsonl, tokenizer_json: Path) -> None:
    texts = make_texts(60)
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"instruction": t, "output": "好"}) + "\n" for t in make_texts(60, seed=1)))
    out, weights = tmp_path / "out", (0.8, 0.2)
    prepare([chats, jsonl(texts, "b.jsonl")], out, tokenizer=tokenizer_json, val_fraction=0.1, weights=weights)
    corpus = Corpus.open(out)
    stream, sources = corpus.split("train"), corpus.source_rows(64)
    order = SampleStream(stream.num_rows(64), 7, sources)
    read = [order[i] for i in range(5 * stream.num_rows(64))]
    targets = [
        stream.targets([row for row in read if source.first <= row < source.first + source.count], 64)
        for source in sources
    ]
    said = re.search(
        r"tokens count; of the loss ([\d.]+)% from chats\.jsonl, ([\d.]+)% from b\.jsonl", packing_line(corpus, 64)
    )
    assert said and float(said[1]) < 40  # although 80 % of the rows
    assert [float(share) for share in said.groups()] == pytest.approx([100 * t / sum(targets) for t in targets], abs=2)

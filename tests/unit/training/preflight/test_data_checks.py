"""What the checks of the data make of their figures."""

from types import SimpleNamespace

import numpy as np
import pytest

from corpus.shards import TokenStream
from evaluation.rows import measured_rows
from model import ModelConfig
from training.evaluation.generation import RepetitionEvaluator, SampleWriter
from training.preflight import data_checks
from training.preflight.data_checks import (
    Overlap,
    RowFigures,
    check_overlap,
    check_padding,
    check_row_targets,
    compare_rows,
    measure_overlap,
)

ROWS = RowFigures({0: 0.01, 1: 1.0, 2: 0.01, 3: 0.01}, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matches": {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}}, "the input itself"),
        ({"matches": {0: 0.0, 1: 0.1, 2: 0.0, 3: 1.0}}, "3 places on"),
        ({"matches": {0: 0.1, 1: 0.5, 2: 0.1, 3: 0.1}}, "only 50.0%"),
        ({"right_targets": 0.5}, "50.0% of the targets are not"),
        ({"from_corpus": 0.5}, "not those of the corpus"),
    ],
)
def test_wrong_targets(changes, words):
    check = check_row_targets(RowFigures(**(vars(ROWS) | changes)))
    assert check.level == "fail"
    assert words in check.text


def test_right_targets_and_full_rows():
    assert check_row_targets(ROWS) is None
    assert check_padding(ROWS).level == "pass"


def test_padding_that_does_not_count_only_wastes_time():
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_inputs": 0.35, "ignored_targets": 0.35}))).level == "warn"
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_targets": 0.35}))).level == "fail"


@pytest.mark.parametrize(("share", "level"), [(0.0, "pass"), (0.04, "pass"), (0.2, "warn"), (0.9, "fail")])
def test_overlaps(share, level):
    assert check_overlap(Overlap(share, 1000, 1.0)).level == level


def test_without_validation_text_nothing_is_compared():
    assert check_overlap(None).level == "warn"


class FakeCorpus:
    """Streams of given ids, without files."""

    def __init__(self, **splits):
        self.ids = {name: np.asarray(ids, dtype=np.uint16) for name, ids in splits.items()}

    def split(self, name):
        return TokenStream([self.ids[name]])


def test_the_id_of_padding_in_the_text_is_no_padding():
    """PAD = EOS = BOS, as GPT-2 has it, and texts of nothing else."""
    ids = np.tile([0, 5, 6, 0, 0, 0], 40)
    for pad_id in (0, 5, 6):
        assert check_padding(compare_rows(FakeCorpus(train=ids), 4, pad_id)).level == "pass"


@pytest.mark.parametrize("ignored", [False, True])
def test_padding_in_place_of_text_is_found_whatever_the_text_holds(monkeypatch, ignored):
    right = data_checks.data_sampler.tensors

    def padded(stream, rows, seq_len, device):
        inputs, targets = right(stream, rows, seq_len, device)
        inputs[:, 6:], targets[:, 5:] = 0, -100 if ignored else 0
        return inputs, targets

    monkeypatch.setattr(data_checks.data_sampler, "tensors", padded)
    rows = compare_rows(FakeCorpus(train=np.tile([0, 5, 6, 7], 60)), 8, 0)
    assert check_padding(rows).level == ("warn" if ignored else "fail")
    assert rows.padded_inputs == pytest.approx(0.1875, abs=0.07)


@pytest.mark.parametrize("tokens", range(42))
def test_a_validation_split_of_a_few_tokens_is_measured_as_a_short_row(tokens):
    corpus = FakeCorpus(train=np.arange(500) % 90, val=np.arange(tokens) % 90)
    assert (measure_overlap(corpus, 1.0) is None) <= (tokens < 200)
    rows, length = measured_rows(corpus.split("val"), 0, 16)
    assert (len(rows), length) == ((tokens - 1) // 16, 16) if tokens > 16 else (int(tokens > 1), max(1, tokens - 1))
    if rows:
        assert corpus.split("val").batch(rows, length).shape == (len(rows), length + 1)
    config = ModelConfig(vocab_size=100)
    RepetitionEvaluator(corpus.split("val"), config, seq_len=16, seed=0, world=SimpleNamespace(rank=0, size=1))
    assert len(SampleWriter(corpus.split("val"), None, config, seq_len=64, seed=0).prompts) == int(tokens > 2)

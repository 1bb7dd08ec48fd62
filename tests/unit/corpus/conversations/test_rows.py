"""Whole documents in rows: nothing lost, nothing cut that fits, and only answers counted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.conversations.rows import best_fit, pack_rows
from corpus.shards import MaskedStream, TokenStream
from model.loss import IGNORED
from model.packed_attention import document_starts
from training.data_sampler import divisor, tensors

BOS, EOS, PAD, BREAK, ROLE = 1, 2, 0, 3, 4
CPU = torch.device("cpu")


def chat(*exchanges: tuple[int, int]) -> list[tuple[int, int]]:
    """(id, mask) of a conversation, given the lengths of its questions and answers."""
    tokens: list[tuple[int, int]] = []
    for question, answer in exchanges:
        for length, counts in ((question, 0), (answer, 1)):
            tokens += [(BREAK, 0)] if tokens else []
            tokens += [(BOS, 0), (ROLE, 0), *[(10 + i % 80, counts) for i in range(length)], (EOS, counts)]
    return tokens


def text(length: int) -> list[tuple[int, int]]:
    return [(BOS, 1), *[(100 + i % 100, 1) for i in range(length)], (EOS, 1)]


def stream(*documents: list[tuple[int, int]]) -> MaskedStream:
    ids, mask = (np.array([token[side] for document in documents for token in document]) for side in (0, 1))
    return MaskedStream([ids.astype(np.uint16)], [mask.astype(np.uint8)], bos_id=BOS, eos_id=EOS, pad_id=PAD)


def counted(found: MaskedStream, seq_len: int) -> list[int]:
    rows = list(range(found.num_rows(seq_len)))
    _, targets = tensors(found, rows, seq_len, CPU)
    return targets[targets != IGNORED].tolist()


@given(st.lists(st.integers(1, 40), max_size=60))
@settings(deadline=None)
def test_best_fit_places_every_item_once_and_overfills_no_bin(lengths: list[int]) -> None:
    bins = best_fit(np.array(lengths, dtype=np.int64), 40)
    assert sorted(item for chosen in bins for item in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in chosen) <= 40 for chosen in bins)
    assert len(bins) <= 2 * sum(lengths) / 40 + 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_every_answer_is_a_target_once_if_it_fits(lengths: list[tuple[int, int]]) -> None:
    found = stream(*(chat(pair) for pair in lengths))
    assert len(counted(found, 20)) == sum(answer + 1 for _, answer in lengths)
    assert found.targets(range(found.num_rows(20)), 20) == sum(answer + 1 for _, answer in lengths)


def test_a_row_holds_whole_conversations_and_padding() -> None:
    found = stream(chat((2, 3)), chat((1, 1)))
    assert found.num_rows(31) == 1
    inputs, targets = tensors(found, [0], 31, CPU)
    first = [BOS, ROLE, 10, 11, EOS, BREAK, BOS, ROLE, 10, 11, 12, EOS]
    second = [BOS, ROLE, 10, EOS, BREAK, BOS, ROLE, 10, EOS]
    assert inputs[0].tolist() == [*first, *second, *[PAD] * 10]
    answers = {7: 10, 8: 11, 9: 12, 10: EOS, 18: 10, 19: EOS}
    assert targets[0].tolist() == [answers.get(place, IGNORED) for place in range(31)]


def test_a_conversation_longer_than_a_row_is_cut_between_exchanges() -> None:
    found = stream(chat((2, 2), (2, 2), (2, 2)))
    rows = found.packed(25)
    assert (rows.split, rows.shortened, rows.left_out) == (1, 0, 0)
    assert sorted(rows.lengths.tolist()) == [11, 23]  # of 35, the line break between them left out
    assert len(counted(found, 25)) == 9


def test_an_answer_longer_than_a_row_loses_its_end_and_a_question_longer_than_a_row_goes() -> None:
    found = stream(chat((2, 50)), chat((50, 2)), chat((1, 1)))
    rows = found.packed(20)
    assert (rows.shortened, rows.left_out) == (2, 1)
    assert sorted(rows.lengths.tolist()) == [9, 21]
    assert EOS not in found.batch([0], 20)[0, 6:].tolist()


def test_plain_text_beside_conversations_is_learned_whole() -> None:
    found = stream(text(100), chat((2, 2)))
    assert found.packed(16).split == 1
    batch = found.batch(list(range(found.num_rows(16))), 16)
    inside = batch[:, 1:][(batch[:, :-1] == EOS) & (batch[:, 1:] != PAD)]
    assert set(inside.tolist()) <= {BOS, BREAK}  # the rest of a text never follows another document
    assert len(counted(found, 16)) == 101 + 3  # every id of the text but its BOS


def test_the_divisor_makes_means_of_uneven_micro_batches_one_mean() -> None:
    found = stream(*(chat((1, length)) for length in (1, 2, 3, 10, 12, 14)))
    rows = list(range(found.num_rows(24)))
    parts = [rows[:1], rows[1:3], rows[3:]]
    assert divisor(found, parts, 24) == pytest.approx(sum(found.targets(part, 24) for part in parts) / 3)


def test_a_stream_without_a_mask_counts_every_target() -> None:
    found = TokenStream([np.arange(30, dtype=np.uint16)])
    inputs, targets = tensors(found, [0, 2], 9, CPU)
    assert inputs.tolist() == [list(range(9)), list(range(18, 27))] and (targets == inputs + 1).all()
    assert found.counted([0], 9) is None and found.targets([0], 9) is None


def test_rows_outside_are_refused() -> None:
    with pytest.raises(IndexError, match="row 1 of a stream of 1 rows"):
        stream(chat((1, 1))).batch([1], 20)


def test_a_stream_without_documents_has_no_rows() -> None:
    assert len(pack_rows(np.zeros(0, np.int64), np.zeros(0, np.uint8), bos_id=1, eos_id=2, seq_len=8)) == 0


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5), min_size=1, max_size=20)
)
@settings(deadline=None, max_examples=50)
def test_conversations_in_a_row_do_not_see_each_other(lengths: list[list[tuple[int, int]]]) -> None:
    found = stream(*(chat(*exchanges) for exchanges in lengths))
    packed, rows = found.packed(24), list(range(found.num_rows(24)))
    starts = document_starts(torch.from_numpy(found.batch(rows, 24)), BOS, EOS)
    for row in rows:
        borders = np.cumsum([0, *(length for _, length in packed.parts(row))]).tolist()
        for start, end in pairwise(borders):
            assert (starts[row, start:end] == start).all()

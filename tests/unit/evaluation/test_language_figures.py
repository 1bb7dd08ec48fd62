"""Bits a byte by position and by length, against sums worked by hand."""

import pytest
import torch

from evaluation.language_figures import measure_context, measure_figures

V = 8


def decode(ids):
    return "".join("abcdefgh"[k] for k in ids)


def uniform(ids):
    return torch.zeros(*ids.shape, V)


@pytest.mark.parametrize("start_id", [0, None])
def test_a_uniform_model_needs_as_many_bits_everywhere(start_id):
    documents = [[1, 2, 3] * 20, [4] * 5, [5] * 250]
    by_position, by_length = measure_context(documents, uniform, decode, start_id=start_id, vocab_size=V, longest=1000)
    assert [bucket.bits_per_byte for bucket in [*by_position, *by_length]] == pytest.approx([3.0] * 6)
    assert [(bucket.start, bucket.end) for bucket in by_position] == [(0, 8), (8, 32), (32, 128), (128, 512)]
    assert [(bucket.start, bucket.end) for bucket in by_length] == [(0, 200), (200, 1000)]
    lost = 0 if start_id == 0 else 1  # of each document its first token has no loss
    assert [bucket.bytes for bucket in by_position] == [8 + 5 + 8 - 3 * lost, 24 + 24, 28 + 96, 122]


def test_a_model_that_reads_on_needs_fewer_bits():
    def after_eight(ids):
        """Knows from the eighth token on that all are 1."""
        logits = torch.zeros(*ids.shape, V)
        logits[:, 8:, 1] = 20.0
        return logits

    by_position, _ = measure_context([[1] * 40], after_eight, decode, start_id=0, vocab_size=V, longest=512)
    assert by_position[0].bits_per_byte == pytest.approx(3.0)
    assert by_position[1].bits_per_byte == pytest.approx(0.0, abs=1e-6)


def test_a_document_is_cut_to_what_the_model_takes_and_stays_in_its_bucket_of_length():
    by_position, by_length = measure_context([[1] * 900], uniform, decode, start_id=0, vocab_size=V, longest=64)
    assert sum(bucket.bytes for bucket in by_position) == 63
    assert [(bucket.start, bucket.bytes) for bucket in by_length] == [(200, 63)]


def test_the_figures_have_a_name_on_tensorboard_each():
    found = measure_figures(
        [[1] * 40],
        uniform,
        encode=lambda texts: [["abcdefgh".index(c) for c in text] for text in texts],
        decode=decode,
        start_id=0,
        vocab_size=V,
        longest=64,
    )
    assert found.scalars()["bits_per_byte_by_position/from_8"] == pytest.approx(3.0)
    assert found.bits_per_byte_by_length[0].bits_per_byte == pytest.approx(3.0)

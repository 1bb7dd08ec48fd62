"""Attention over packed rows: a block at a time, against PyTorch's attention with the same mask."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.packed_attention import BLOCK, PackedRows, _bias, document_mask, document_starts

BEGIN, END = 1, 2
CPU = torch.device("cpu")


def rows(length: int, cuts: list[list[int]]) -> torch.Tensor:
    """Rows of ordinary tokens, with a document's end and the next one's begin at each cut."""
    ids = torch.full((len(cuts), length), 7)
    for row, places in enumerate(cuts):
        for place in places:
            if 0 < place < length:
                ids[row, place - 1], ids[row, place] = END, BEGIN
    return ids


def both(ids: torch.Tensor, heads: int, kv_heads: int, dtype: torch.dtype, *, mask_documents: bool = True):
    """(output, gradients of q, k, v) of the block form and of SDPA on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    batch, length = ids.shape
    q, k, v, direction = (
        torch.randn(batch, count, length, 8, generator=generator).to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads, heads)
    )
    mask = document_mask(ids, BEGIN, END) if mask_documents else torch.ones(length, length, dtype=torch.bool).tril()
    repeated = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    expected = F.scaled_dot_product_attention(q, *repeated, attn_mask=mask)
    packed = PackedRows.of(ids, BEGIN, END, mask_documents=mask_documents, dtype=dtype, device=ids.device)
    assert packed is not None and packed.first_key is not None
    found = packed.attend(q, k, v)
    return [[y, *torch.autograd.grad(y, (q, k, v), direction)] for y in (found, expected)]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 3 * BLOCK),
    cuts=st.lists(st.lists(st.integers(1, 3 * BLOCK), max_size=4), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]),
)
def test_blocks_compute_what_sdpa_does(length, cuts, heads):
    for found, expected in zip(*both(rows(length, cuts), *heads, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_they_differ_by_rounding(dtype):
    for found, expected in zip(*both(rows(200, [[90], []]), 4, 2, dtype), strict=True):
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()


def test_without_documents_it_is_causal_attention():
    for found, expected in zip(*both(rows(200, [[90]]), 4, 2, torch.float32, mask_documents=False), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_document_starts_at_a_begin_after_an_end():
    ids = torch.tensor([[BEGIN, 5, END, BEGIN, 6, BEGIN, END, 7]])
    assert document_starts(ids, BEGIN, END).tolist() == [[0, 0, 0, 3, 3, 3, 3, 3]]


def test_keys_before_the_first_document_of_a_block_are_not_read():
    packed = PackedRows.of(
        rows(4 * BLOCK, [[2 * BLOCK + 5]]), BEGIN, END, mask_documents=True, dtype=torch.float32, device=CPU
    )
    assert packed.first_key == [[0, 0, 0, 2 * BLOCK]]


@pytest.mark.parametrize("length", [40, 3 * BLOCK])
def test_the_mask_of_a_gpu_says_the_same(length):
    ids = rows(length, [[13], []])
    bias = _bias(document_mask(ids, BEGIN, END), torch.float16)
    assert bias.shape == (2, 1, length, length)
    assert bias.stride(2) % 16 == 0
    q, k, v = (torch.randn(2, 2, length, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    on_gpu = PackedRows(bias.float()).attend(q, k, v)
    packed = PackedRows.of(ids, BEGIN, END, mask_documents=True, dtype=torch.float32, device=CPU)
    torch.testing.assert_close(on_gpu, packed.attend(q, k, v), atol=2e-5, rtol=1e-4)


def test_by_document_every_document_is_a_row_of_its_own():
    ids = rows(40, [[13, 20], [], [39]])
    found = PackedRows.by_document(ids, BEGIN, END, mask_documents=True, dtype=torch.float32, device=CPU)
    assert found.ends is not None and found.ends.tolist() == [0, 13, 20, 40, 80, 119, 120]
    assert found.longest == BLOCK
    whole = PackedRows.by_document(ids, BEGIN, END, mask_documents=False, dtype=torch.float32, device=CPU)
    assert whole.ends is not None and whole.ends.tolist() == [0, 40, 80, 120]
    q, k, v = (torch.randn(3, 2, 40, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    end_to_end = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
    parts = [
        F.scaled_dot_product_attention(*(t[start:end].transpose(0, 1) for t in end_to_end), is_causal=True)
        for start, end in itertools.pairwise(found.ends.tolist())
    ]
    packed = PackedRows.of(ids, BEGIN, END, mask_documents=True, dtype=torch.float32, device=CPU)
    expected = packed.attend(q, k, v).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(torch.cat(parts, 1).transpose(0, 1), expected, atol=2e-5, rtol=1e-4)

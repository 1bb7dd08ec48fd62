"""One text in NumPy against the network's own passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.inference import decode_numpy
from model.inference.decode_numpy import NumpyDecoder
from model.inference.kv_cache import KVCache


def ids_of(length: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, length), generator=torch.Generator().manual_seed(0))


def empty_cache(model, capacity: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(model.config, 1, capacity, device=torch.device("cpu"), dtype=dtype)


def logits_of(decoder: NumpyDecoder, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits (T, V) of a step for each token."""
    return torch.cat([decoder.step(token).clone() for token in ids[0].tolist()])


@pytest.mark.parametrize("most", [decode_numpy.MOST_NUMPY_WEIGHTS, 0], ids=["numpy", "torch"])
@pytest.mark.parametrize("prompt", [0, 5])
@torch.inference_mode()
def test_a_step_gives_the_logits_of_the_whole_pass(any_model, monkeypatch, most, prompt):
    """With either product of a matrix; with a cache that the network's own pass has begun, and from nothing."""
    monkeypatch.setattr(decode_numpy, "MOST_NUMPY_WEIGHTS", most)
    ids, cache = ids_of(40), empty_cache(any_model, 40)
    if prompt:
        any_model.logits(ids[:, :prompt], cache=cache)
    decoder = NumpyDecoder(any_model, cache)
    expected = any_model.logits(ids)[0, prompt:]
    torch.testing.assert_close(logits_of(decoder, ids[:, prompt:]), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(IndexError, match="holds 40 tokens"):
        decoder.step(3)


@torch.inference_mode()
def test_weights_in_fp32_and_their_cache_are_used_where_they_are(make_model):
    model = make_model()
    cache = empty_cache(model, 4)
    decoder = NumpyDecoder(model, cache)
    assert np.shares_memory(decoder.output.weight, model.model.embed_tokens.weight.numpy())
    assert np.shares_memory(decoder.layers[1].values_KCD, cache.layers[1, 1].numpy())
    assert np.shares_memory(
        decoder.layers[0].experts[0].gate_up.parts[1].weight, model.model.layers[0].mlp.experts[0].up_proj.weight
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_weights_in_16_bits_are_those_numbers_in_fp32(any_model, dtype):
    ids, half = ids_of(12), any_model.to(dtype)
    logits = logits_of(NumpyDecoder(half, empty_cache(half, 12, dtype)), ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, half.float().logits(ids)[0], atol=1e-5, rtol=1e-5)


def test_what_it_is_for(make_model, monkeypatch):
    model = make_model()
    assert NumpyDecoder.supports(model, 1)
    assert not NumpyDecoder.supports(model, 2)
    assert not NumpyDecoder.supports(model.to("meta"), 1)
    monkeypatch.setattr(decode_numpy, "MOST_COPIED_WEIGHTS", 1000)
    assert NumpyDecoder.supports(make_model(), 1)
    assert not NumpyDecoder.supports(make_model().half(), 1)  # which would be copied


@torch.inference_mode()
def test_far_logits_give_no_warning(make_model, recwarn):
    model = make_model()
    for block in model.model.layers:
        block.mlp.experts[0].gate_proj.weight.mul_(1e4)  # exp(-x) overflows, where silu(x) is 0
    assert logits_of(NumpyDecoder(model, empty_cache(model, 12)), ids_of(12)).isfinite().all()
    assert not recwarn.list

"""The decoding loop against transformers and against itself without a cache; text that arrives in pieces."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import GenerationError, TextStream, pad_left, until_eos
from model.inference.kv_cache import KVCache
from model.inference.sampling import forbid_repeated_ngrams

PROMPTS = [[1, 17, 205, 33, 33, 8], [1, 99], [1, 250, 250, 64, 12, 7, 7, 120, 41]]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return pad_left(PROMPTS, 0)


def continuations(model, prompts, **options) -> list[list[int]]:
    ids, mask = pad_left(prompts, 0)
    return model.generate(ids, mask, **options)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.0},
        {"repetition_penalty": 1.2},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 2},
    ],
    ids=["plain", "penalty", "no-repeat"],
)
def test_greedy_text_is_that_of_transformers(any_model, to_transformers, batch, options):
    ids, mask = batch
    # a pad token that never wins, because transformers counts padding as text when it looks for repetition
    any_model.model.embed_tokens.weight.data[0] = 0
    theirs = to_transformers(any_model)
    plain = theirs.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0, **options
    )
    eos_id = int(plain[0, -9])  # a token that occurs: this row ends early, and is filled up
    expected = theirs.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=24, eos_token_id=eos_id, pad_token_id=0, **options
    )
    ours = any_model.generate(ids, mask, do_sample=False, max_new_tokens=24, eos_token_id=eos_id, **options)
    assert ours.tolist() == expected.tolist()
    assert eos_id in ours[0, ids.shape[1] : -1]


def test_greedy_text_of_one_prompt_is_that_of_transformers(any_model, to_transformers):
    """Which has a way of its own here, and nothing to fill up."""
    ids = torch.tensor(PROMPTS[:1])
    options = {"do_sample": False, "max_new_tokens": 60, "repetition_penalty": 1.0}
    expected = to_transformers(any_model).generate(ids, eos_token_id=None, pad_token_id=0, **options)
    assert any_model.generate(ids, eos_token_id=-1, **options).tolist() == expected.tolist()


def test_greedy_text_is_that_of_whole_passes_without_a_cache(any_model):
    """Of one prompt, which NumPy continues on a CPU, and of several."""
    prompts = torch.tensor([[1, 17, 205], [1, 99, 4]])
    options = {"max_new_tokens": 30, "eos_token_id": -1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 2}
    for ids in (prompts[:1], prompts):
        out = any_model.generate(ids, do_sample=False, **options)
        with torch.no_grad():
            logits = any_model.logits(out)
        for end in range(ids.shape[1], out.shape[1]):
            before = out[:, :end]
            allowed = forbid_repeated_ngrams(logits[:, end - 1], before, torch.ones_like(before).bool(), 2)
            assert torch.equal(out[:, end], allowed.argmax(-1))
        assert len(set(out[0].tolist())) > 10  # no text of one repeated token, which any bug would give as well


def test_a_cache_fed_in_chunks_gives_the_logits_of_one_pass(any_model):
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = KVCache(any_model.config, 2, 20, device=ids.device, dtype=torch.float32)
    with torch.no_grad():
        parts = [any_model.logits(part, cache=cache) for part in ids.split([7, 1, 5, 1, 6], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), any_model.logits(ids), atol=1e-4, rtol=1e-4)


def test_the_cache_holds_key_heads_once_and_refuses_to_overflow(make_model):
    model = make_model()
    cache = KVCache(model.config, 1, 4, device=torch.device("cpu"), dtype=torch.float32)
    assert cache.layers[:, 0].shape == (2, 1, model.config.num_key_value_heads, 4, model.config.head_size)
    with pytest.raises(IndexError, match="holds 4 tokens"), torch.no_grad():
        model.logits(torch.zeros(1, 5, dtype=torch.long), cache=cache)


@pytest.mark.parametrize("do_sample", [False, True])
def test_padding_changes_no_text(any_model, do_sample):
    options = {
        "do_sample": do_sample,
        "max_new_tokens": 12,
        "seed": 5,
        "eos_token_id": -1,
        "no_repeat_ngram_size": 3,
    }
    together = continuations(any_model, PROMPTS, **options)
    alone = [continuations(any_model, [p], first_row=i, **options)[0] for i, p in enumerate(PROMPTS)]
    assert together == alone


def test_what_padding_holds_is_never_looked_at(make_model, batch):
    model = make_model()
    ids, mask = batch
    other = torch.where(mask.bool(), ids, 211)
    for do_sample in (False, True):
        a, b = (model.generate(x, mask, seed=0, do_sample=do_sample, eos_token_id=-1) for x in (ids, other))
        assert torch.equal(a[:, ids.shape[1] :], b[:, ids.shape[1] :])


def test_logits_stay_finite_under_padding(make_model, batch):
    from model.inference.generate import attention_mask_for

    ids, mask = batch
    allowed = attention_mask_for(mask.bool(), 0, ids.shape[1])
    assert allowed.any(-1).all()  # a softmax over nothing is NaN, in some kernels and versions
    assert not allowed[1, 0, 7:, :7].any()
    with torch.no_grad():
        assert make_model().logits(ids, mask=allowed).isfinite().all()


def test_a_seed_makes_texts_reproducible_and_rows_different(make_model):
    model = make_model()
    same = [[1, 40, 50]] * 3
    first = continuations(model, same, seed=7)
    assert first == continuations(model, same, seed=7)
    assert first != continuations(model, same, seed=8)
    assert len({tuple(row) for row in first}) == 3
    assert first[1:] == continuations(model, same[1:], seed=7, first_row=1)


def test_without_a_seed_torch_decides(make_model, batch):
    model = make_model()
    torch.manual_seed(3)
    first, second = (model.generate(*batch).tolist() for _ in range(2))
    torch.manual_seed(3)
    assert model.generate(*batch).tolist() == first != second


def test_top_k_1_and_a_tiny_top_p_are_greedy(make_model, batch):
    model = make_model()
    greedy = model.generate(*batch, do_sample=False).tolist()
    assert model.generate(*batch, top_k=1).tolist() == greedy
    assert model.generate(*batch, top_k=0, top_p=1e-6).tolist() == greedy


def test_sampling_follows_the_distribution(make_model):
    model = make_model(vocab_size=8)
    ids = torch.tensor([[1, 5, 6]]).expand(4000, 3)
    drawn = model.generate(ids, max_new_tokens=1, seed=0, top_k=0, top_p=1.0, repetition_penalty=1.0)[:, -1]
    with torch.no_grad():
        expected = model.logits(ids[:1])[0, -1].softmax(-1)
    assert expected.max() < 0.9
    torch.testing.assert_close(drawn.bincount(minlength=8) / 4000, expected, atol=0.03, rtol=0)


def test_the_eos_of_the_config_stops(make_model):
    probe = make_model()
    text = continuations(probe, [[1, 9]], do_sample=False, eos_token_id=-1, max_new_tokens=8)[0]
    model = make_model(eos_token_id=text[4])
    stopped = continuations(model, [[1, 9]], do_sample=False, max_new_tokens=8)[0]
    assert stopped == text[: text.index(text[4]) + 1]


def test_the_streamer_sees_every_token_as_it_is_written(make_model, batch):
    steps = []
    out = make_model().generate(
        *batch, max_new_tokens=7, eos_token_id=-1, seed=0, streamer=lambda tokens, _: steps.append(tokens)
    )
    assert torch.tensor(steps).T.tolist() == out[:, batch[0].shape[1] :].tolist()


def test_the_result_may_be_trained_on_and_the_mode_is_kept(make_model):
    model = make_model().train()
    out = model.generate(torch.tensor([[1, 5]]), max_new_tokens=4)
    assert model.training
    model(out[:, :-1], out[:, 1:]).total.backward()
    assert model.model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize(
    ("ids", "mask", "options", "word"),
    [
        ([[1, 2]], None, {"temperature": 0.0}, "temperature"),
        ([[1, 2]], None, {"max_new_tokens": 0}, "max_new_tokens"),
        ([[1, 2]], None, {"max_new_tokens": 127}, "128 positions"),
        ([[1, 300]], None, {}, "vocabulary of 300"),
        ([[1, -1]], None, {}, "vocabulary of 300"),
        ([[]], None, {}, "shape"),
        ([1, 2], None, {}, "shape"),
        ([[1, 2]], [[1]], {}, "attention_mask"),
        ([[1, 2]], [[1, 0]], {}, "pad on the left"),
        ([[1, 2, 3]], [[1, 0, 1]], {}, "pad on the left"),
        ([[1, 2]], [[0, 0]], {}, "pad on the left"),
    ],
)
def test_bad_input_is_named(make_model, ids, mask, options, word):
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(GenerationError, match=word):
        make_model().generate(torch.tensor(ids, dtype=torch.long), mask, **options)


def test_the_longest_text_that_fits(make_model):
    assert make_model().generate(torch.tensor([[1, 2]]), max_new_tokens=126, eos_token_id=-1).shape == (1, 128)


def test_a_diverged_model_says_so(make_model):
    model = make_model()
    model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(GenerationError, match="diverged"):
        model.generate(torch.tensor([[1, 2]]))


def test_until_eos():
    assert until_eos([5, 6, 2, 0, 0], 2) == ([5, 6], True)
    assert until_eos([5, 6], 2) == ([5, 6], False)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=30))
def test_pieces_of_any_tokens_join_to_the_whole(tokenizer, ids):
    """Most of these ids are single bytes, so nearly every list is invalid UTF-8 somewhere."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("从前有山𠮷龘😀👍🏽 a\n，é\u0301"), max_size=20))
def test_text_arrives_by_whole_characters(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text).ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_a_character_cut_short_is_shown_at_the_end(tokenizer):
    ids = tokenizer.encode("a龘").ids
    assert len(ids) == 4
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"


def test_spaces_between_words_survive_a_tokenizer_that_drops_the_first():
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"▁one": 0, "▁two": 1}, unk_token="▁one"))
    tokenizer.decoder = decoders.Metaspace()
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (0, 1, 0, 1)] == ["one", " two", " one", " two"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_generate_with_a_cache_of_their_kind(any_model, batch, dtype):
    ids, mask = batch
    with torch.no_grad():
        reference = any_model.logits(ids[2:])[0, -1]
    half = any_model.to(dtype)
    out = half.generate(ids, mask, max_new_tokens=3, do_sample=False, repetition_penalty=1.0, eos_token_id=-1)
    chosen = int(out[2, ids.shape[1]])
    assert reference.max() - reference[chosen] < 0.1 * reference.std()

"""Held-out prompts and the continuations that a model generates for them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus.shards import MaskedStream, TokenStream
from evaluation.held_out_prompts import (
    GREEDY,
    SAMPLED,
    SHORTEST,
    HeldOutPrompts,
    generate_continuations,
    make_generator,
    measure_answers,
    select_prompts,
    select_questions,
)
from model import CausalLM, GenerationError, ModelConfig
from model.init import init_weights

BOS, EOS = 1, 2


def stream_of(lengths, shard=1_000_000):
    """Documents of the given lengths, every token of them another number from 10 on, in shards of some size."""
    ids, number = [], 10
    for length in lengths:
        ids += [BOS, *range(number, number + length), EOS]
        number += length
    whole = np.array(ids, dtype=np.uint16)
    return TokenStream([whole[i : i + shard] for i in range(0, len(whole), shard)])


def held(lengths, **more):
    return select_prompts(stream_of(lengths), bos_id=BOS, eos_id=EOS, **more)


def test_a_long_document_is_prompted_with_its_beginning():
    selected = held([200], count=1, prompt_tokens=8, new_tokens=16)
    assert selected == HeldOutPrompts([[BOS, *range(10, 17)]], [list(range(17, 33))], 16)


def test_a_short_document_is_cut_in_half_and_its_continuation_ends_before_the_eos():
    selected = held([11], count=1)
    assert selected == HeldOutPrompts([[BOS, *range(10, 15)]], [list(range(15, 21))])


def test_a_prompt_longer_than_its_continuation():
    selected = held([200], count=1, prompt_tokens=64, new_tokens=16)
    assert (len(selected.prompts[0]), len(selected.continuations[0])) == (64, 16)


def test_prompts_are_spread_over_the_stream():
    selected = held([100] * 60, count=6)
    assert [prompt[0] for prompt in selected.prompts] == [BOS] * 6
    assert [(prompt[1] - 10) // 100 for prompt in selected.prompts] == [0, 10, 20, 30, 40, 50]


def test_few_long_documents_are_also_read_in_the_middle():
    selected = held([3000], count=8)
    assert len(selected.prompts) == 8
    assert [prompt[0] == BOS for prompt in selected.prompts] == [True] + [False] * 7
    assert selected.prompts[4][0] == pytest.approx(1500, abs=20)


def test_documents_too_short_for_a_figure_are_passed_over():
    selected = held([1, 0, 3, 40, 2], count=1)
    assert selected.prompts == [[BOS, *range(14, 33)]]


@pytest.mark.parametrize("lengths", [[], [0], [1, 2, 3]])
def test_a_split_without_text_gives_no_prompts(lengths):
    assert held(lengths) == HeldOutPrompts([], [])


def test_an_eos_inside_a_chat_does_not_end_the_prompt():
    ids = [BOS, 10, 11, 12, EOS, 13, BOS, 14, 15, 16, EOS, 17, 18, 19, 20, EOS]
    selected = select_prompts(TokenStream([np.array(ids, np.uint16)]), bos_id=BOS, eos_id=EOS, count=1, prompt_tokens=6)
    assert selected == HeldOutPrompts([[BOS, 10, 11, 12, EOS, 13]], [[BOS, 14, 15, 16]])


def test_a_stream_without_bos():
    ids = [EOS, *range(10, 30), EOS, *range(30, 60), EOS]
    selected = select_prompts(
        TokenStream([np.array(ids, np.uint16)]), bos_id=None, eos_id=EOS, count=1, prompt_tokens=5, new_tokens=6
    )
    assert selected.prompts == [[10, 11, 12, 13, 14]]
    assert selected.continuations == [[15, 16, 17, 18, 19, 20]]


@given(
    st.lists(st.integers(0, 150), max_size=40),
    st.integers(1, 12),
    st.integers(2, 40),
    st.integers(4, 40),
    st.integers(3, 500),
)
def test_every_prompt_goes_on_in_its_own_document(lengths, count, prompt_tokens, new_tokens, shard):
    stream = stream_of(lengths, shard)
    selected = select_prompts(
        stream, bos_id=BOS, eos_id=EOS, count=count, prompt_tokens=prompt_tokens, new_tokens=new_tokens
    )
    ends = np.cumsum(lengths) + 10
    taken = []
    assert len(selected.prompts) == len(selected.continuations) <= count
    for prompt, truth in zip(selected.prompts, selected.continuations, strict=True):
        text = [*prompt, *truth]
        body = text[text[0] == BOS :]
        assert 2 <= len(prompt) <= prompt_tokens
        assert SHORTEST <= len(truth) <= new_tokens
        assert body == list(range(body[0], body[0] + len(body)))  # one piece of the stream
        assert len({int(np.searchsorted(ends, token, side="right")) for token in body}) == 1  # of one document
        if len(truth) < new_tokens:
            assert body[-1] + 1 in ends  # it stopped at the document's end
        taken += body
    assert len(taken) == len(set(taken))


@pytest.fixture(scope="module")
def tiny():
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        moe_intermediate_size=24,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = CausalLM(config)
    init_weights(model, config, seed=0)
    return model


PROMPTS = HeldOutPrompts([[BOS, 5, 6], [BOS, 7], [BOS, 8, 9, 10]], [[1]] * 3, 12)


def continuations(model, settings, **more):
    return generate_continuations(make_generator(model, settings), PROMPTS, eos_id=EOS, **more)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_texts_do_not_depend_on_the_batch(tiny, settings):
    one = continuations(tiny, settings, batch_size=1)
    assert one == continuations(tiny, settings, batch_size=2)
    assert len(one) == 3


def test_sampled_texts_follow_the_seed_and_greedy_ones_do_not(tiny):
    sampled = [continuations(tiny, SAMPLED, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert continuations(tiny, GREEDY, seed=1) == continuations(tiny, GREEDY, seed=2)


def test_generation_leaves_the_random_numbers_of_training_alone(tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    continuations(tiny, SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs_end_before_the_eos():
    def generator(prompts, *, new_tokens, seed, first_row):
        return [[9, first_row + 7, EOS, 9, 9] for _ in prompts]

    assert generate_continuations(generator, PROMPTS, eos_id=EOS, batch_size=2) == [[9, 7], [9, 7], [9, 9]]


def test_a_model_that_has_diverged_is_an_error(tiny):
    tiny = CausalLM(tiny.config)
    torch.nn.init.constant_(tiny.model.norm.weight, float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        continuations(tiny, GREEDY)


def test_questions_end_where_their_answers_begin():
    first, second = [1, 9, 10, 2, 7, 1, 8], [1, 9, 11, 2, 7, 1, 8]
    too_long = [1, 9, *range(30, 60), 2, 7, 1, 8]
    ids = [*first, 20, 21, 2, *second, 22, 2, *too_long, 23, 2]
    mask = [*[0] * 7, 1, 1, 1, *[0] * 7, 1, 1, *[0] * len(too_long), 1, 1]
    arrays = [np.array(ids, np.uint16)], [np.array(mask, np.uint8)]
    stream = MaskedStream(*arrays, bos_id=1, eos_id=2, pad_id=0)
    found = select_questions(stream, most_tokens=20, count=9, new_tokens=1)
    assert found.prompts == [first, second]
    assert found.continuations == [[20], [22]]
    empty = MaskedStream([], [], bos_id=1, eos_id=2, pad_id=0)
    assert select_questions(empty, most_tokens=20, count=9, new_tokens=1).prompts == []


def test_answers_are_measured_beside_the_true_ones():
    assert measure_answers([[], [5, 5], [5] * 4], [[5], [5, 5], [5, 5, 5]], 4) == {
        "answer_tokens": 2.0,
        "true_answer_tokens": 2.0,
        "empty_answers": pytest.approx(1 / 3),
        "endless_answers": pytest.approx(1 / 3),
        "true_endless_answers": 0.0,
    }

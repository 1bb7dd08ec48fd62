"""Held-out prompts and what is written for them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus.shards import TokenStream
from evaluation.held_out_prompts import SHORTEST, Probe, held_out, write, writer
from model import CausalLM, GenerationError, ModelConfig
from model.init import init_weights

BEGIN, END = 1, 2


def stream_of(lengths, shard=1_000_000):
    """Documents of the given lengths, every token of them another number from 10 on, in shards of some size."""
    ids, number = [], 10
    for length in lengths:
        ids += [BEGIN, *range(number, number + length), END]
        number += length
    whole = np.array(ids, dtype=np.uint16)
    return TokenStream([whole[i : i + shard] for i in range(0, len(whole), shard)])


def held(lengths, **more):
    return held_out(stream_of(lengths), begin_id=BEGIN, end_id=END, **more)


def test_a_long_document_is_prompted_with_its_beginning():
    probe = held([200], count=1, prompt_tokens=8, new_tokens=16)
    assert probe == Probe([[BEGIN, *range(10, 17)]], [list(range(17, 33))], 16)


def test_a_short_document_is_cut_in_half_and_its_truth_ends_before_the_mark():
    probe = held([11], count=1)
    assert probe == Probe([[BEGIN, *range(10, 15)]], [list(range(15, 21))])


def test_a_prompt_longer_than_its_continuation():
    probe = held([200], count=1, prompt_tokens=64, new_tokens=16)
    assert (len(probe.prompts[0]), len(probe.truths[0])) == (64, 16)


def test_prompts_are_spread_over_the_stream():
    probe = held([100] * 60, count=6)
    assert [prompt[0] for prompt in probe.prompts] == [BEGIN] * 6
    assert [(prompt[1] - 10) // 100 for prompt in probe.prompts] == [0, 10, 20, 30, 40, 50]


def test_few_long_documents_are_also_read_in_the_middle():
    probe = held([3000], count=8)
    assert len(probe.prompts) == 8
    assert [prompt[0] == BEGIN for prompt in probe.prompts] == [True] + [False] * 7
    assert probe.prompts[4][0] == pytest.approx(1500, abs=20)


def test_documents_too_short_for_a_figure_are_passed_over():
    probe = held([1, 0, 3, 40, 2], count=1)
    assert probe.prompts == [[BEGIN, *range(14, 33)]]


@pytest.mark.parametrize("lengths", [[], [0], [1, 2, 3]])
def test_a_split_without_text_gives_no_prompts(lengths):
    assert held(lengths) == Probe([], [])


def test_marks_inside_a_chat_do_not_end_the_prompt():
    ids = [BEGIN, 10, 11, 12, END, 13, BEGIN, 14, 15, 16, END, 17, 18, 19, 20, END]
    probe = held_out(TokenStream([np.array(ids, np.uint16)]), begin_id=BEGIN, end_id=END, count=1, prompt_tokens=6)
    assert probe == Probe([[BEGIN, 10, 11, 12, END, 13]], [[BEGIN, 14, 15, 16]])


def test_a_stream_without_begin_marks():
    ids = [END, *range(10, 30), END, *range(30, 60), END]
    probe = held_out(
        TokenStream([np.array(ids, np.uint16)]), begin_id=None, end_id=END, count=1, prompt_tokens=5, new_tokens=6
    )
    assert probe.prompts == [[10, 11, 12, 13, 14]]
    assert probe.truths == [[15, 16, 17, 18, 19, 20]]


@given(
    st.lists(st.integers(0, 150), max_size=40),
    st.integers(1, 12),
    st.integers(2, 40),
    st.integers(4, 40),
    st.integers(3, 500),
)
def test_every_prompt_goes_on_in_its_own_document(lengths, count, prompt_tokens, new_tokens, shard):
    stream = stream_of(lengths, shard)
    probe = held_out(
        stream, begin_id=BEGIN, end_id=END, count=count, prompt_tokens=prompt_tokens, new_tokens=new_tokens
    )
    ends = np.cumsum(lengths) + 10
    taken = []
    assert len(probe.prompts) == len(probe.truths) <= count
    for prompt, truth in zip(probe.prompts, probe.truths, strict=True):
        text = [*prompt, *truth]
        body = text[text[0] == BEGIN :]
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
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = CausalLM(config)
    init_weights(model, config, seed=0)
    return model


PROBE = Probe([[BEGIN, 5, 6], [BEGIN, 7], [BEGIN, 8, 9, 10]], [[1]] * 3, 12)


def test_texts_do_not_depend_on_the_batch(tiny):
    for greedy in (True, False):
        one = write(writer(tiny), PROBE, end_id=END, greedy=greedy, batch_size=1)
        assert one == write(writer(tiny), PROBE, end_id=END, greedy=greedy, batch_size=2)
        assert len(one) == 3


def test_sampled_texts_follow_the_seed_and_greedy_ones_do_not(tiny):
    sampled = [write(writer(tiny), PROBE, end_id=END, greedy=False, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert write(writer(tiny), PROBE, end_id=END, greedy=True, seed=1) == write(
        writer(tiny), PROBE, end_id=END, greedy=True, seed=2
    )


def test_writing_leaves_the_random_numbers_of_training_alone(tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    write(writer(tiny), PROBE, end_id=END, greedy=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs_end_before_the_mark():
    def generate(prompts, *, new_tokens, greedy, seed, first_row):
        return [[9, first_row + 7, END, 9, 9] for _ in prompts]

    assert write(generate, PROBE, end_id=END, greedy=True, batch_size=2) == [[9, 7], [9, 7], [9, 9]]


def test_a_model_that_has_diverged_is_an_error(tiny):
    tiny = CausalLM(tiny.config)
    torch.nn.init.constant_(tiny.model.norm.weight, float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        write(writer(tiny), PROBE, end_id=END, greedy=True)

"""Minimal pairs: what is wrong in each kind, and that chance is 50 % by construction."""

import math
import random

import numpy as np
import pytest
import torch

from evaluation.minimal_pairs import KINDS, Pair, make_pairs, measure_pairs
from model import CausalLM, ModelConfig
from model.init import init_weights
from sample_stories import generate_stories

BOS = 0
STORIES = list(generate_stories(100, seed=5))
READ = list(generate_stories(300, seed=99))  # what a model has learned from
CHARACTERS = sorted(set("".join([*STORIES, *READ])))
VOCABULARY = len(CHARACTERS) + 1


def encode(texts):
    """One token a character."""
    places = {character: k + 1 for k, character in enumerate(CHARACTERS)}
    return [[places[character] for character in text] for text in texts]


def decode(ids):
    return "".join(CHARACTERS[k - 1] for k in ids if k != BOS)


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(STORIES, encode, BOS, count=40)


def of_kind(pairs: list[Pair], kind: str) -> list[Pair]:
    return [pair for pair in pairs if pair.kind == kind]


def test_every_kind_is_found_and_the_same_at_every_call(pairs):
    assert {pair.kind for pair in pairs} == set(KINDS)
    again = make_pairs(STORIES, encode, BOS, count=40)
    assert [pair.true[0].tolist() for pair in again] == [pair.true[0].tolist() for pair in pairs]
    assert all(len(of_kind(pairs, kind)) <= 40 for kind in KINDS)


def test_the_true_side_is_held_out_text_and_the_other_is_not(pairs):
    whole = "\n".join(STORIES)
    for pair in pairs:
        assert all(decode(ids[1:]) in whole for ids in pair.true)
        assert [ids.tolist() for ids in pair.true] != [ids.tolist() for ids in pair.false]
        assert all(ids[0] == BOS for ids in [*pair.true, *pair.false])


def test_both_sides_have_the_same_tokens_so_that_frequencies_say_nothing(pairs):
    for pair in pairs:
        true, false = (np.concatenate(side) for side in (pair.true, pair.false))
        assert len(true) == len(false)
        if pair.kind != "repeated_clause":
            assert sorted(true) == sorted(false)


def test_what_is_wrong_is_what_the_kind_says(pairs):
    for pair in of_kind(pairs, "swapped_characters"):
        true, false = (decode(side[0]) for side in (pair.true, pair.false))
        (i, j) = [k for k, (a, b) in enumerate(zip(true, false, strict=True)) if a != b]
        assert j == i + 1 and true[i] == false[j] and true[j] == false[i]
    for pair in of_kind(pairs, "measure_word"):
        for true, false in zip(pair.true, pair.false, strict=True):
            assert int((true != false).sum()) == 1
    for pair in of_kind(pairs, "repeated_clause"):
        false = decode(pair.false[0])
        assert any(false[-2 * n : -n] == false[-n:] for n in range(5, 40))


def test_a_model_that_knows_nothing_has_exactly_50_percent(pairs):
    result = measure_pairs(pairs, lambda ids: torch.zeros(*ids.shape, VOCABULARY), VOCABULARY)
    assert {kind: found.share for kind, found in result.items()} == dict.fromkeys((*KINDS, "all"), 0.5)


def test_a_model_that_knows_only_frequencies_has_exactly_50_percent(pairs):
    torch.manual_seed(0)
    unigram = 3 * torch.randn(VOCABULARY)
    permuted = [pair for pair in pairs if pair.kind != "repeated_clause"]
    result = measure_pairs(permuted, lambda ids: unigram.expand(*ids.shape, -1), VOCABULARY)
    assert {found.share for found in result.values()} == {0.5}


def test_random_weights_are_near_50_percent(pairs):
    shares = []
    for seed in range(3):
        config = ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            use_moe=False,
            bos_token_id=BOS,
        )
        model = CausalLM(config)
        init_weights(model, config, seed)
        with torch.inference_mode():
            found = measure_pairs(pairs, lambda ids, model=model: model.packed_logits(ids).float(), VOCABULARY)["all"]
        assert found.low < 0.5 + 0.06 and found.high > 0.5 - 0.06
        shares.append(found.share)
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.06)


def bigram_logits(texts: list[str]) -> torch.Tensor:
    counts = torch.full((VOCABULARY, VOCABULARY), 0.01)
    for ids in encode(texts):
        for a, b in zip([BOS, *ids], ids, strict=False):
            counts[a, b] += 1
    return (counts / counts.sum(-1, keepdim=True)).log()


def test_a_model_that_has_learned_is_above_chance_the_more_the_more_text_it_saw(pairs):
    shares = []
    for count in (3, 300):
        table = bigram_logits(READ[:count])
        found = measure_pairs(pairs, lambda ids, table=table: table[ids], VOCABULARY)
        shares.append(found["swapped_characters"].share)
    assert 0.5 < shares[0] < shares[1] and shares[1] > 0.85


def test_the_interval_is_that_of_wilson_and_ties_count_half():
    ids = np.array([BOS, 1, 2])
    other = np.array([BOS, 2, 1])
    logits = torch.zeros(VOCABULARY, VOCABULARY)
    logits[BOS, 1] = 5.0  # finds (1, 2) likelier
    pairs = [Pair("all_right", [ids], [other])] * 3 + [Pair("all_right", [ids], [ids])]
    found = measure_pairs(pairs, lambda x: logits[x], VOCABULARY)["all"]
    assert (found.pairs, found.share) == (4, 3.5 / 4)
    z2 = 1.96**2
    centre, half = (0.875 + z2 / 8) / (1 + z2 / 4), 1.96 / (1 + z2 / 4) * math.sqrt(0.875 * 0.125 / 4 + z2 / 64)
    assert (found.low, found.high) == (pytest.approx(centre - half), pytest.approx(min(1, centre + half)))


def test_an_output_that_is_not_finite_is_an_error(pairs):
    with pytest.raises(FloatingPointError):
        measure_pairs(pairs[:1], lambda ids: torch.full((*ids.shape, VOCABULARY), math.nan), VOCABULARY)


def test_text_without_chinese_has_no_pairs_that_need_it():
    letters = random.Random(0)
    texts = ["".join(letters.choice("abc ,.\n") for _ in range(300)) for _ in range(5)]
    kinds = {pair.kind for pair in make_pairs(texts, lambda ts: [[ord(c) % 50 + 1 for c in t] for t in ts], BOS)}
    assert not kinds & {"swapped_characters", "measure_word", "reversed_order"}

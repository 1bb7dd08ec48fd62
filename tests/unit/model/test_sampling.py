"""Each step against transformers' own, on random scores."""

from __future__ import annotations

import math

import pytest
import torch

from model.inference.sampling import (
    Sampling,
    draw,
    forbid_repeated_ngrams,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    process,
    sample,
)

logits_process = pytest.importorskip("transformers.generation.logits_process")


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def ids() -> torch.Tensor:
    """Few different tokens, so that they and their pairs repeat."""
    return torch.randint(0, 5, (6, 30), generator=torch.Generator().manual_seed(1))


def everywhere(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize("penalty", [1.0, 1.2, 0.5, 3.0])
def test_repetition_penalty(scores, ids, penalty):
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
    assert torch.equal(penalise_repetition(scores, ids, penalty), theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 31])
def test_no_repeat_ngram(scores, ids, size):
    theirs = logits_process.NoRepeatNGramLogitsProcessor(size)(ids, scores.clone())
    ours = forbid_repeated_ngrams(scores, ids, everywhere(ids), size)
    assert torch.equal(ours, theirs)
    assert ours.isinf().any() or size > 3


@pytest.mark.parametrize("k", [1, 7, 40, 50])
def test_top_k(scores, ids, k):
    scores[:, 5] = scores.topk(7, dim=-1).values[:, -1]  # a tie with the seventh
    assert torch.equal(keep_top_k(scores, k), logits_process.TopKLogitsWarper(k)(ids, scores.clone()))


@pytest.mark.parametrize("p", [1e-12, 1e-6, 0.3, 0.95, 0.999, 1.0])
def test_top_p(scores, ids, p):
    ours = keep_top_p(scores, p)
    assert torch.equal(ours, logits_process.TopPLogitsWarper(p)(ids, scores.clone()))
    assert (ours > -math.inf).any(-1).all()


def test_all_steps_in_the_order_of_transformers(scores, ids):
    steps = logits_process.LogitsProcessorList(
        [
            logits_process.RepetitionPenaltyLogitsProcessor(1.3),
            logits_process.NoRepeatNGramLogitsProcessor(2),
            logits_process.TemperatureLogitsWarper(0.6),
            logits_process.TopKLogitsWarper(12),
            logits_process.TopPLogitsWarper(0.8),
        ]
    )
    how = Sampling(temperature=0.6, top_k=12, top_p=0.8, repetition_penalty=1.3, no_repeat_ngram_size=2)
    assert torch.equal(process(scores, ids, everywhere(ids), how), steps(ids, scores.clone()))


def test_greedy_leaves_out_the_steps_of_sampling(scores, ids):
    how = Sampling(do_sample=False, temperature=0.6, top_k=3, top_p=0.1, repetition_penalty=1.3)
    expected = penalise_repetition(scores, ids, 1.3)
    assert torch.equal(process(scores, ids, everywhere(ids), how), expected)


def test_padding_does_not_count(scores, ids):
    valid = everywhere(ids)
    valid[:, :10] = False
    how = Sampling(do_sample=False, repetition_penalty=1.5, no_repeat_ngram_size=2)
    ids[:, :10] = 39  # occurs nowhere else, and the pair 39 39 would be banned at once if padding counted
    ids[0, -1] = 39
    expected = process(scores, ids[:, 10:], valid[:, 10:], how)
    assert torch.equal(process(scores, ids, valid, how), expected)
    assert not torch.equal(process(scores, ids, everywhere(ids), how), expected)


def test_a_used_up_vocabulary_does_not_end_the_text(ids):
    scores = torch.randn(6, 5)
    used_up = forbid_repeated_ngrams(scores, ids, everywhere(ids), 1)
    assert len(ids[0].unique()) == 5
    assert torch.equal(used_up[0], scores[0])


def test_draw_follows_the_probabilities_and_never_takes_a_banned_token():
    scores = torch.tensor([-math.inf, math.log(0.25), -math.inf, math.log(0.75), -math.inf])
    points = [0.0, 0.2499, 0.2501, 0.9999999, 1 - 2**-53]
    assert draw(scores.expand(5, 5), points).tolist() == [1, 1, 3, 3, 3]


def test_draw_gives_each_row_its_own_token():
    scores = torch.log(torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]]))
    assert draw(scores, [0.6, 0.6, 0.4]).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temp"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram"),
    ],
)
def test_senseless_values_are_named(change, word):
    [problem] = Sampling(**change).problems()
    assert word in problem


def test_sensible_values_pass_and_greedy_needs_no_temperature():
    assert not list(Sampling().problems())
    assert not list(Sampling(top_k=0, top_p=1.0, repetition_penalty=1.0).problems())
    assert not list(Sampling(do_sample=False, temperature=0.0).problems())


@pytest.mark.parametrize(
    "how",
    [
        Sampling(top_k=7, top_p=0.8, temperature=0.7),
        Sampling(top_k=3, top_p=1.0),
        Sampling(top_k=0, top_p=0.9),
        Sampling(top_k=40),
    ],
)
def test_a_sample_is_drawn_from_what_all_steps_leave(scores, how):
    """Looking at the best few alone gives the token that sorting all of them gives, at every point of the line."""
    scores[2, :] = scores[2].round()  # ties, also with the last of the best
    none = Sampling(do_sample=False, repetition_penalty=1.0)
    kept = keep_top_p(
        keep_top_k(
            process(scores, torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1).bool(), none) / how.temperature,
            how.top_k,
        ),
        how.top_p,
    )
    drawn = set()
    for point in (0.0, 0.1, 0.37, 0.5, 0.83, 0.999):
        tokens = sample(scores, how, [point] * 6).tolist()
        assert tokens == draw(kept, [point] * 6).tolist()
        drawn.add(tokens[0])
    assert len(drawn) > 1

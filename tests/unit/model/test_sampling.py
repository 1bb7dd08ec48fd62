"""Each step against transformers' own, on random scores."""

from __future__ import annotations

import math

import pytest
import torch

from model.inference.sampling import (
    SamplingParameters,
    TokenHistory,
    choose,
    forbid_repeated_ngrams,
    penalise_repetition,
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


def drawn_shares(logits: torch.Tensor, parameters: SamplingParameters, points: int = 2000) -> torch.Tensor:
    """Return how often each token (B, V) is drawn by random numbers that are spread evenly."""
    rows = [sample(logits, parameters, [(i + 0.5) / points] * len(logits)) for i in range(points)]
    return torch.stack([(torch.stack(rows) == token).float().mean(0) for token in range(logits.shape[1])], dim=1)


def expected_shares(logits: torch.Tensor, *warpers) -> torch.Tensor:
    none = torch.zeros(len(logits), 1, dtype=torch.long)
    return logits_process.LogitsProcessorList(warpers)(none, logits.clone()).softmax(-1)


@pytest.mark.parametrize("k", [1, 7, 40, 50])
@pytest.mark.parametrize("p", [1e-12, 0.3, 0.8, 0.999, 1.0])
def test_tokens_are_drawn_as_often_as_those_that_transformers_leaves(scores, k, p):
    found = drawn_shares(scores, SamplingParameters(temperature=0.7, top_k=k, top_p=p))
    warpers = (
        logits_process.TemperatureLogitsWarper(0.7),
        logits_process.TopKLogitsWarper(k),
        logits_process.TopPLogitsWarper(p),
    )
    torch.testing.assert_close(found, expected_shares(scores, *warpers), atol=1e-3, rtol=0)


def test_without_limits_every_token_is_drawn_by_its_probability(scores):
    found = drawn_shares(scores, SamplingParameters(top_k=0, top_p=1.0))
    torch.testing.assert_close(found, scores.softmax(-1), atol=1e-3, rtol=0)
    found = drawn_shares(scores, SamplingParameters(top_k=0, top_p=0.9))
    torch.testing.assert_close(found, expected_shares(scores, logits_process.TopPLogitsWarper(0.9)), atol=1e-3, rtol=0)


def history(ids: torch.Tensor, valid: torch.Tensor | None = None) -> TokenHistory:
    return TokenHistory(ids, everywhere(ids) if valid is None else valid, 0)


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
    parameters = SamplingParameters(
        temperature=0.6, top_k=12, top_p=0.8, repetition_penalty=1.3, no_repeat_ngram_size=2
    )
    left = steps(ids, scores.clone()).softmax(-1)
    drawn = torch.stack([choose(scores, history(ids), parameters, [i / 500] * 6) for i in range(500)])
    for row in range(6):
        shares = drawn[:, row].bincount(minlength=40) / 500
        torch.testing.assert_close(shares, left[row], atol=4e-3, rtol=0)


def test_greedy_leaves_out_the_steps_of_sampling(scores, ids):
    parameters = SamplingParameters(do_sample=False, temperature=0.6, top_k=3, top_p=0.1, repetition_penalty=1.3)
    expected = penalise_repetition(scores, ids, 1.3).argmax(-1)
    assert torch.equal(choose(scores, history(ids), parameters, []), expected)


def test_padding_does_not_count(scores, ids):
    valid = everywhere(ids)
    valid[:, :10] = False
    ids[:, :10] = 39  # occurs nowhere else, and the pair 39 39 would be banned at once if padding counted
    ids[0, -1] = 39
    padded, alone = history(ids, valid), history(ids[:, 10:])
    penalised = [penalise_repetition(scores, tokens.ids_BT, 1.5) for tokens in (padded, alone, history(ids))]
    banned = [
        forbid_repeated_ngrams(scores, tokens.ids_BT, tokens.valid_BT, 2) for tokens in (padded, alone, history(ids))
    ]
    for with_padding, without, counted in (penalised, banned):
        assert torch.equal(with_padding, without)
        assert not torch.equal(counted, without)


def test_a_used_up_vocabulary_does_not_end_the_text(ids):
    scores = torch.randn(6, 5)
    used_up = forbid_repeated_ngrams(scores, ids, everywhere(ids), 1)
    assert len(ids[0].unique()) == 5
    assert torch.equal(used_up[0], scores[0])


UNLIMITED = SamplingParameters(top_k=0, top_p=1.0)


def test_a_banned_token_is_never_drawn():
    logits = torch.tensor([-math.inf, math.log(0.25), -math.inf, math.log(0.75), -math.inf])
    points = [0.0, 0.2499, 0.2501, 0.9999999, 1 - 2**-53]
    assert sample(logits.expand(5, 5), UNLIMITED, points).tolist() == [1, 1, 3, 3, 3]
    for limited in (SamplingParameters(top_k=4, top_p=1.0), SamplingParameters(top_k=0, top_p=0.99)):
        assert set(sample(logits.expand(5, 5), limited, points).tolist()) == {1, 3}


def test_each_row_has_its_own_random_number():
    logits = torch.log(torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]]))
    assert sample(logits, UNLIMITED, [0.6, 0.6, 0.4]).tolist() == [1, 2, 0]


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
    [problem] = SamplingParameters(**change).problems()
    assert word in problem


def test_sensible_values_pass_and_greedy_needs_no_temperature():
    assert not list(SamplingParameters().problems())
    assert not list(SamplingParameters(top_k=0, top_p=1.0, repetition_penalty=1.0).problems())
    assert not list(SamplingParameters(do_sample=False, temperature=0.0).problems())

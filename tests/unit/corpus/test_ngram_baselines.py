"""N-gram baselines: known answers, exact normalisation, nothing of the held-out text in the counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corpus import ngram_baselines
from corpus.ngram_baselines import NO_CONTEXT, NGramBaselines, NGrams, measure
from corpus.shards import TokenStream

BASELINES = NGramBaselines(uniform=8.0, unigram=6.0, bigram=4.0, trigram=3.0, bytes_per_token=2.0, tokens=100)


def chain(table: np.ndarray, length: int, seed: int) -> np.ndarray:
    """A sequence in which table[a, ..., :] are the shares of what follows the last tokens a, ... ."""
    rng = np.random.default_rng(seed)
    order = table.ndim - 1
    limits = table.cumsum(axis=-1)
    ids = [0] * order
    for draw in rng.random(length):
        ids.append(min(int(np.searchsorted(limits[tuple(ids[-order:])], draw)), table.shape[-1] - 1))
    return np.array(ids, dtype=np.uint16)


def random_table(order: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(size, 0.4), size=(size,) * order)


def rate(table: np.ndarray, ids: np.ndarray) -> float:
    """Nats a token that the true chain loses on `ids`: its entropy rate, up to the chance of this sequence."""
    order = table.ndim - 1
    columns = [ids[i : len(ids) - order + i] for i in range(order + 1)]
    return float(-np.log(table[tuple(columns)]).mean())


def test_uniform_noise_is_worth_ln_v_to_every_baseline() -> None:
    noise = np.random.default_rng(0).integers(0, 50, 400_000)
    found = measure(noise[:300_000], noise[300_000:], 50, 1.0)
    assert found.uniform == math.log(50)
    assert found.unigram == pytest.approx(math.log(50), abs=1e-3)
    assert found.bigram == pytest.approx(math.log(50), abs=0.01)
    assert found.trigram == pytest.approx(math.log(50), abs=0.25)  # 125,000 cells to fill from 300,000 draws


def test_a_first_order_chain_gives_its_entropy_rate_from_the_bigram_on() -> None:
    table = random_table(1, 20, seed=1)
    held_out = chain(table, 20_000, seed=3)
    found = measure(chain(table, 200_000, seed=2), held_out, 20, 1.0)
    assert found.bigram == pytest.approx(rate(table, held_out), abs=0.005)
    assert found.trigram == pytest.approx(rate(table, held_out), abs=0.03)
    assert found.unigram > found.bigram + 0.2


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 200))
def test_every_context_has_a_distribution_that_sums_to_one(ids: list[int], most: int) -> None:
    model = NGrams(np.array(ids), 5, max_tokens=most)
    tokens = np.arange(5)
    for before_that, before in product([NO_CONTEXT, *range(5)], range(5)):
        found = model.probabilities(np.full(5, before_that), np.full(5, before), tokens)
        for probabilities in found:
            assert probabilities.sum() == pytest.approx(1)
            assert (probabilities > 0).all()


def test_nothing_of_the_held_out_text_is_counted() -> None:
    """Noise repeated over and over in the held-out text stays noise to every baseline."""
    rng = np.random.default_rng(0)
    found = measure(rng.integers(0, 100, 5_000), np.tile(rng.integers(0, 100, 50), 400), 100, 1.0)
    assert min(found.losses().values()) > math.log(100) - 0.1


def test_the_largest_vocabulary_fits_the_packed_keys() -> None:
    ids = np.array([65535, 65534, 65535] * 30, dtype=np.uint16)
    found = measure(ids, ids, 65536, 1.0)
    assert found.trigram < 0.2 < found.unigram


def test_targets_are_all_ids_but_the_first() -> None:
    assert measure(np.arange(10), np.arange(7), 10, 1.0).tokens == 6
    assert measure(np.array([1]), np.array([1, 1]), 2, 1.0).tokens == 1


def test_a_stream_over_shards_is_the_same_as_its_ids() -> None:
    ids = chain(random_table(1, 12, seed=0), 5_000, seed=1)
    stream = TokenStream([ids[:1_700], ids[1_700:1_701], ids[1_701:4_000]])
    assert measure(stream, TokenStream([ids[4_000:]]), 12, 1.5) == measure(ids[:4_000], ids[4_000:], 12, 1.5)


def test_a_long_stream_is_read_in_parts_from_its_start_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half knows 0 and 1 alone, the second 2 and 3; a limited count still sees both."""
    ids = np.concatenate((np.tile([0, 1], 5_000), np.tile([2, 3], 5_000)))
    limited = measure(ids, ids, 4, 1.0, max_train_tokens=1_280)
    assert limited.train_tokens == 1_280
    assert limited.unigram == pytest.approx(math.log(4), abs=0.01)
    assert limited.bigram < 0.05
    monkeypatch.setattr(ngram_baselines, "MAX_HELD_OUT_TOKENS", 640)
    assert measure(ids, ids, 4, 1.0).tokens == 640 - 64


@pytest.mark.parametrize(
    ("train", "held_out", "said"),
    [
        ([], [1, 2], "1 training"),
        ([1], [1], "2 held-out"),
        ([9], [1, 2], "vocabulary of 4"),
        ([1], [1, 9], "of 4"),
    ],
)
def test_streams_that_cannot_be_measured_are_refused(train: list[int], held_out: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(np.array(train, dtype=np.int64), np.array(held_out), 4, 1.0)


@pytest.mark.parametrize(
    ("loss", "result"),
    [
        (9.0, "above_uniform"),
        (8.0, "above_uniform"),
        (7.9, "below_uniform"),
        (5.0, "below_unigram"),
        (3.5, "below_bigram"),
        (2.0, "below_trigram"),
        (math.nan, "above_uniform"),
        (math.inf, "above_uniform"),
    ],
)
def test_how_a_loss_compares(loss: float, result: str) -> None:
    assert BASELINES.compare(loss) == result


def test_a_loss_must_beat_every_baseline_on_its_way_down() -> None:
    """Where the trigram is no better than the bigram, a loss between the two is not below both."""
    assert BASELINES.model_copy(update={"trigram": 5.0}).compare(4.5) == "below_unigram"


def counted(keys: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], dict[int, int]]:
    """Context -> token -> count."""
    table: dict[tuple[int, ...], dict[int, int]] = {}
    for *context, token in keys:
        row = table.setdefault(tuple(context), {})
        row[token] = row.get(token, 0) + 1
    return table


def by_the_book(ids: list[int], size: int, order: int, context: tuple[int, ...], token: int) -> float:
    """Interpolated modified Kneser-Ney of Chen and Goodman (1999), written down as the paper says it, slow as it is."""

    def probability(n: int, context: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / size
        own = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        longer = {tuple(ids[i : i + n + 1]) for i in range(len(ids) - n)}
        table = counted(own if n == order else [gram[1:] for gram in longer])
        every = [count for row in table.values() for count in row.values()]
        n1, n2, n3, n4 = (every.count(k) for k in (1, 2, 3, 4))
        discounts = [0.0, 0.5, 1.0, 1.5]
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            discounts = found if all(0 < found[k] <= k for k in (1, 2, 3)) else discounts
        row = table.get(context[len(context) - n + 1 :] if n > 1 else ())
        lower = probability(n - 1, context)
        if row is None:
            return lower
        total = sum(row.values())
        left = sum(discounts[min(count, 3)] for count in row.values()) / total
        count = row.get(token, 0)
        return (count - discounts[min(count, 3)]) / total + left * lower

    return probability(order, context)


@given(st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 3]), min_size=4, max_size=60))
@example([3, 2, 2, 1, 1, 1, 0, 0, 0, 0])  # counts of 1, 2, 3 and 4: discounts of its own, a third, 1 and 5/3
def test_probabilities_are_those_of_the_book(ids: list[int]) -> None:
    model = NGrams(np.array(ids), 4)
    for before_that, before in ((0, 0), (1, 0), (3, 2)):
        found = model.probabilities(np.full(4, before_that), np.full(4, before), np.arange(4))
        for order, probabilities in enumerate(found, 1):
            expected = [by_the_book(ids, 4, order, (before_that, before), token) for token in range(4)]
            assert probabilities == pytest.approx(expected)

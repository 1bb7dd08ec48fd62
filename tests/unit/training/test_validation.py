"""Evaluation: every rank takes part in every pass with as many rows, and each row counts once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.evaluation import validation
from training.processes.process_group import World

SEQ_LEN = 4


class Engine:
    """Counts: the loss of a row is the sum of its targets."""

    def __init__(self) -> None:
        self.device, self.shapes, self.seen = torch.device("cpu"), [], []
        self.module = SimpleNamespace(loss_sum=self.loss_sum)

    def train(self) -> None:
        """As DeepSpeed has it."""

    eval = train

    def loss_sum(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of the targets that count."""
        self.shapes.append(tuple(ids.shape))
        self.seen += ids[:, 0][(targets != validation.IGNORED).all(-1)].tolist()
        assert (ids >= 0).all()
        return targets[targets != validation.IGNORED].sum()


class Stream:
    """Row n holds n, n + 1, ..."""

    @staticmethod
    def batch(rows: list[int], seq_len: int) -> np.ndarray:
        """(B, seq_len + 1)."""
        return np.array(rows)[:, None] + np.arange(seq_len + 1)

    @staticmethod
    def counted(rows: list[int], seq_len: int) -> None:
        """All targets do."""


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_make_the_same_passes_and_rows_count_once(monkeypatch, rows, micro_batch, size):
    sums = []
    monkeypatch.setattr(validation, "sum_over_ranks", lambda values: sums.append(values) or values.clamp_min(1))
    engines = [Engine() for _ in range(size)]
    for rank, engine in enumerate(engines):
        validation.evaluate(
            engine,
            Stream(),
            list(range(rows)),
            seq_len=SEQ_LEN,
            micro_batch=micro_batch,
            world=World(rank, size, rank, size),
            bytes_per_token=3.0,
        )
    assert all(engine.shapes == engines[0].shapes for engine in engines)
    assert sorted(row for engine in engines for row in engine.seen) == list(range(rows))
    loss, tokens = sum(sums).tolist()
    assert tokens == rows * SEQ_LEN
    assert loss == sum(row + place for row in range(rows) for place in range(1, SEQ_LEN + 1))


def test_perplexity_is_infinite_rather_than_an_error():
    assert validation.Evaluation(1e4, 1, 0.0).perplexity == float("inf")
    assert validation.Evaluation(0.0, 1, 0.0).perplexity == 1.0


@pytest.mark.parametrize("rows", [1, 78, 79, 790, 5000])
def test_an_untrained_network_is_evaluated_on_about_20_000_tokens_of_all_parts_of_the_text(rows):
    chosen = validation.enough_untrained(list(range(rows)), 256)
    assert min(rows * 256, 20_000) <= len(chosen) * 256 < 2 * 20_000
    assert chosen[0] == 0 and rows - 1 - chosen[-1] < rows / len(chosen)
    assert len(set(np.diff(chosen))) <= 1

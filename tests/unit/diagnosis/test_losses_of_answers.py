"""The loss of a model on conversations is that of the answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corpus.shards import MaskedStream
from diagnosis.losses import PADDED, hidden, measure_losses, seen, sequences
from model import CausalLM, ModelConfig
from model.init import init_weights
from training.data_sampler import tensors

CONFIG = ModelConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


class StandIn:
    """What a loss needs of a model under test."""

    masks_documents, device, active_parameters = True, torch.device("cpu"), 1000
    vocab_size, bos_id, eos_id, pad_id = 40, 1, 2, 0

    def __init__(self) -> None:
        self.network = CausalLM(CONFIG)
        init_weights(self.network, CONFIG, seed=2)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.network.packed_logits(ids)


def test_hidden_ids_are_seen_and_padding_is_not() -> None:
    ids = np.array([0, 1, 39])
    assert (hidden(ids) < PADDED).all()
    assert seen(torch.tensor([*hidden(ids).tolist(), PADDED, 5])).tolist() == [0, 1, 39, 0, 5]


def test_only_answers_are_measured() -> None:
    rng = np.random.default_rng(0)
    ids, mask = [], []
    for _ in range(30):
        question, answer = rng.integers(1, 6, 2)
        ids += [1, *rng.integers(3, 40, question + answer).tolist(), 2]
        mask += [0] * (1 + question) + [1] * (answer + 1)
    arrays = [np.array(ids, np.uint16)], [np.array(mask, np.uint8)]
    stream, model = MaskedStream(*arrays, bos_id=1, eos_id=2, pad_id=0), StandIn()
    rows = list(range(stream.num_rows(24)))
    found = measure_losses(model, sequences(model, stream, 24, 10_000, rows))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        expected = model.network.loss_sum(*tensors(stream, rows, 24, torch.device("cpu"))).item()
    assert found and found.loss == pytest.approx(expected / sum(mask), rel=1e-5)

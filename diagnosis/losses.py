"""The loss of a model on some text, at the next token and at the tokens around it.

Shapes in names: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corpus.shards import TokenStream
from diagnosis.models import ModelUnderTest
from evaluation.documents import documents
from evaluation.rows import measured_rows
from evaluation.token_losses import PADDED, batches

OFFSETS = (0, 1, 2, 3)
FLOP_BUDGET = 4e11  # of a loss on a CPU, some ten seconds; a GPU gets a hundred times that
FEWEST_ROWS = 8


@dataclass(frozen=True)
class Losses:
    """Mean losses on a split in nats. `offsets[k]` is that of the prediction at t on the token at t + k; 1 is right."""

    loss: float
    error: float
    """Standard error of `loss`, 0 where all rows were measured."""
    offsets: dict[int, float]
    pad_after_eos: float | None
    """Mean probability of padding after an EOS."""


def sequences(
    model: ModelUnderTest, stream: TokenStream, seq_len: int, most_tokens: int, rows: list[int] | None = None
) -> list[np.ndarray]:
    """Return ids to measure a loss on: at most `most_tokens`, spread over the stream, and fewer for a large model.

    Our own models take rows of packed documents (`rows`, or any) as in training. Another model gets each document by
    itself, because nothing would keep it from attending to the document before; without a BOS it starts with an EOS, as
    a document in packed text does. An id that is no target, such as those of questions, comes as `hidden(id)`.
    """
    budget = FLOP_BUDGET * (1 if model.device.type == "cpu" else 100)
    most = int(min(most_tokens, budget / (2 * model.active_parameters)))
    if model.masks_documents:
        if rows is None:
            rows, seq_len = measured_rows(stream, most, seq_len)
        chosen = [rows[i] for i in spread(len(rows), most // seq_len)]
        if not chosen:
            return []
        ids_BT, counted_BT = stream.batch(chosen, seq_len), stream.counted(chosen, seq_len)
        if counted_BT is not None:
            ids_BT[:, 1:] = np.where(counted_BT, ids_BT[:, 1:], hidden(ids_BT[:, 1:]))
        return list(ids_BT)
    eos = [model.eos_id] if model.eos_id >= 0 else []
    before = eos if model.bos_id is None else []
    found = []
    for ids in documents(stream, model.bos_id, model.eos_id, most, places=8) if eos else [stream.read(0, most)]:
        whole = np.concatenate((before, ids, eos)).astype(np.int64)
        found += [whole[start : start + seq_len + 1] for start in range(0, len(whole) - 1, seq_len)]
    return found


def hidden(ids: np.ndarray) -> np.ndarray:
    """Return ids as those that are seen and not measured, below PADDED; the same function brings them back."""
    return PADDED - 1 - ids


def seen(ids: Tensor) -> Tensor:
    """Return what a model reads: hidden ids as they are, and 0 for padding."""
    return torch.where(ids < PADDED, PADDED - 1 - ids, ids).clamp_min(0)


def spread(length: int, count: int) -> list[int]:
    """Return `count` of the indices below `length` (FEWEST_ROWS at least), evenly over all of them."""
    count = min(length, max(FEWEST_ROWS, count))
    return [i * length // count for i in range(count)]


def measure_losses(model: ModelUnderTest, ids: list[np.ndarray], of: int | None = None) -> Losses | None:
    """Return the mean losses over sequences of ids, a sample of `of` in all; None without any.

    FloatingPointError if the model's output is not finite.
    """
    if not ids:
        return None
    sums, counts, padding = (torch.zeros(size, dtype=torch.float64) for size in (len(OFFSETS), len(OFFSETS), 2))
    per_sequence: list[float] = []
    for _, ids_BT in batches(ids, model.vocab_size):
        log_p_BTV = model.logits(seen(ids_BT[:, :-1])).log_softmax(-1).cpu()
        for index, offset in enumerate(OFFSETS):
            nats_BT, known_BT = _nats(log_p_BTV, ids_BT, offset)
            sums[index] += nats_BT.double().sum()
            counts[index] += known_BT.sum()
            if offset == 1:
                per_sequence += (nats_BT.double().sum(-1) / known_BT.sum(-1).clamp_min(1)).tolist()
        padding += _padding(log_p_BTV, ids_BT, model)
    if not model.masks_documents and model.bos_id is not None:
        # packed text has the BOS too, and the n-gram baselines count it; after an EOS it is certain
        counts[OFFSETS.index(1)] += sum(int(sequence[0] == model.bos_id) for sequence in ids)
    means = (sums / counts.clamp_min(1)).tolist()
    if not all(map(math.isfinite, means)):
        raise FloatingPointError("the model's output is not finite")
    sampled = of is not None and 2 <= len(ids) < of
    return Losses(
        loss=means[OFFSETS.index(1)],
        error=float(np.std(per_sequence, ddof=1) / len(ids) ** 0.5) if sampled else 0.0,
        offsets=dict(zip(OFFSETS, means, strict=True)),
        pad_after_eos=float(padding[0] / padding[1]) if padding[1] else None,
    )


def _nats(log_p_BTV: Tensor, ids_BT: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Return (B, positions) -log p(token at t + offset) by the prediction at t, and where there is such a token."""
    positions = min(log_p_BTV.shape[1], ids_BT.shape[1] - offset)
    targets_BT = ids_BT[:, offset : offset + positions]
    # a prediction counts where the next token is known, so that every offset is measured at the same positions
    known_BT = (targets_BT != PADDED) & (ids_BT[:, 1 : positions + 1] > PADDED)
    nats_BT = -log_p_BTV[:, :positions].gather(-1, seen(targets_BT)[..., None])[..., 0]
    return nats_BT.where(known_BT, torch.zeros(())), known_BT


def _padding(log_p_BTV: Tensor, ids_BT: Tensor, model: ModelUnderTest) -> Tensor:
    """Return (sum of p(padding) after each EOS, number of EOS)."""
    if model.pad_id is None or model.eos_id < 0:
        return torch.zeros(2, dtype=torch.float64)
    after_eos = log_p_BTV[..., model.pad_id][seen(ids_BT[:, :-1]) == model.eos_id]
    return torch.tensor([after_eos.double().exp().sum().item(), len(after_eos)], dtype=torch.float64)

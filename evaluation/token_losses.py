"""The loss of each single token of some sequences, for figures that need more than a mean.

Shapes in names: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""From ids (B, T) to logits (B, T, V) of the next token."""
PADDED = -1  # fills a batch after the end of a sequence
LOGITS_AT_ONCE = 2**24


def batches(sequences: Sequence[np.ndarray], vocab_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (places in `sequences`, ids (B, T)) of similar lengths, those of one id left out.

    Batches are padded on the right with PADDED, where causal attention never looks.
    """
    order = sorted((k for k in range(len(sequences)) if len(sequences[k]) > 1), key=lambda k: -len(sequences[k]))
    while order:
        longest = len(sequences[order[0]])
        places = order[: max(1, LOGITS_AT_ONCE // (longest * vocab_size))]
        order = order[len(places) :]
        ids_BT = torch.full((len(places), longest), PADDED)
        for row, place in enumerate(places):
            ids_BT[row, : len(sequences[place])] = torch.from_numpy(sequences[place])
        yield places, ids_BT


def token_losses(logits: Logits, sequences: Sequence[np.ndarray], vocab_size: int) -> list[np.ndarray]:
    """Return for each sequence of ids the nats of all its tokens but the first, given those before.

    FloatingPointError if the model's output is not finite.
    """
    found = [np.zeros(0) for _ in sequences]
    for places, ids_BT in batches(sequences, vocab_size):
        log_p_BTV = logits(ids_BT[:, :-1].clamp_min(0)).log_softmax(-1)
        targets_BT = ids_BT[:, 1:].clamp_min(0).to(log_p_BTV.device)
        nats_BT = -log_p_BTV.gather(-1, targets_BT[..., None])[..., 0].double().cpu()
        for row, place in enumerate(places):
            nats = nats_BT[row, : len(sequences[place]) - 1].numpy()
            if not np.isfinite(nats).all():
                raise FloatingPointError("the model's output is not finite")
            found[place] = nats
    return found

"""One micro-batch through DeepSpeed, the same for the run and for the checks before it."""

from __future__ import annotations

from typing import Any

from corpus.shards import TokenStream
from model.transformer import Losses
from training import sampler


def forward_backward(engine: Any, stream: TokenStream, rows: list[int], seq_len: int) -> Losses:
    """Rows of the corpus to gradients; `engine.step()` must follow, and steps the weights at the accumulation's end."""
    ids, targets = sampler.tensors(stream, rows, seq_len, engine.device)
    losses = engine(ids, targets)
    engine.backward(losses.total)
    return losses

"""Validation loss, computed on all ranks; how often a run evaluates, writes samples and saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from corpus.shards import TokenStream
from model.loss import IGNORED
from training.config.command_line import Options
from training.data_sampler import tensors
from training.engine.protocol import Engine
from training.processes.process_group import World, sum_over_ranks

_UNTRAINED_TOKENS = 20_000


@dataclass(frozen=True)
class Intervals:
    """Optimizer steps between two evaluations, samples, checkpoints."""

    evaluation: int
    sample: int
    save: int


def intervals(options: Options, total_steps: int) -> Intervals:
    """Return the intervals of a run of `total_steps`, where its flags leave them open."""
    return Intervals(
        evaluation=options.eval_interval or max(1, min(options.save_interval, math.ceil(total_steps / 20))),
        sample=options.sample_interval or min(1000, math.ceil(total_steps / 10)),
        save=options.save_interval,
    )


def enough_untrained(rows: list[int], seq_len: int) -> list[int]:
    """Return of the rows, evenly, about 20,000 tokens: enough for a network to which all tokens are alike."""
    return rows[:: max(1, len(rows) * seq_len // _UNTRAINED_TOKENS)]


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats a token over `tokens` targets."""

    loss: float
    tokens: int
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """Return exp(loss), infinite rather than an overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def evaluate(
    engine: Engine,
    stream: TokenStream,
    rows: list[int],
    *,
    seq_len: int,
    micro_batch: int,
    world: World,
    bytes_per_token: float,
    give_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Return the mean loss over `rows`; a collective call with the same number of passes on every rank.

    `give_up` is asked before each pass, must answer alike on all ranks, and ends it with None.
    """
    share = math.ceil(len(rows) / world.size)
    mine = rows[world.rank * share : (world.rank + 1) * share]
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # read once, at the end: no waiting in between
    engine.eval()
    try:
        for start in range(0, share, micro_batch):
            if give_up():
                return None
            # a rank whose share has run out still takes part with as many rows, uncounted: experts on other ranks
            # exchange as many tokens with each
            chosen = mine[start : start + micro_batch]
            missing = min(micro_batch, share - start) - len(chosen)
            ids, targets = tensors(stream, chosen + rows[:1] * missing, seq_len, engine.device)
            if missing:  # not in place: of a single row, inputs and targets are views of the same ids
                targets = torch.cat((targets[: len(chosen)], torch.full_like(targets[len(chosen) :], IGNORED)))
            loss_sum = engine.module.loss_sum(ids, targets)
            sums += torch.stack((loss_sum.double(), (targets != IGNORED).sum().double()))
    finally:
        engine.train()
    total, tokens = sum_over_ranks(sums).tolist()
    loss = total / tokens
    return Evaluation(loss, int(tokens), loss / math.log(2) / bytes_per_token)

"""Checks of what the network computes: its loss at the start, what it can see, and whether evaluation agrees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus.shards import Corpus
from model.packed import document_mask
from training import sampler
from training.evaluation.validation import IGNORED
from training.preflight.data_checks import OFFSETS, RawTokens
from training.preflight.report import Check, failed, passed
from training.preflight.trial_engine import TrialEngine
from training.processes.process_group import sum_over_ranks

_TOLERANCE = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.1}  # nats, between two ways to compute one mean loss
_LEAK = 1e-6  # of the gradient that the past gets; masked attention gives exactly 0
_START = 0.3  # nats about ln(V); init_weights promises 0.15


def judge_start(loss: float, vocab_size: int) -> Check:
    """A network that knows nothing gives every token the same chance."""
    expected = math.log(vocab_size)
    text = f"{loss:.3f} nats a token, ln({vocab_size:,}) is {expected:.3f}"
    if abs(loss - expected) <= _START:
        return passed("loss_at_start", text)
    if not math.isfinite(loss):
        return failed(
            "loss_at_start", text, "the first forward pass overflows: look at the initial weights and the precision"
        )
    if loss > expected:
        return failed(
            "loss_at_start",
            f"{text}: sure of itself, and wrong",
            "the initial logits are too large: look at the embedding's scale (initializer_range)",
        )
    return failed(
        "loss_at_start",
        f"{text}: it knows its targets before it has learned",
        "look for answers in the inputs, or padding in the targets",
    )


def future_leak(bench: TrialEngine) -> float:
    """The gradient that inputs get from losses before them, as a share of that which earlier inputs get; 0 is right.

    Collective. Goes through `loss_sum`, whose path from ids to hidden states is that of training.
    """
    module, row = bench.engine.module, bench.rows(1)
    ids, targets = sampler.tensors(bench.stream, row, bench.seq_len, bench.device)
    half = ids.shape[1] // 2
    targets = targets.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= half, IGNORED)
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = module.model.embed_tokens.register_forward_hook(keep)
    try:
        (gradient,) = torch.autograd.grad(module.loss_sum(ids, targets), embedded)
    finally:
        handle.remove()
    squares = gradient.double().square().sum((0, 2))
    past, future = sum_over_ranks(torch.stack((squares[:half].sum(), squares[half:].sum()))).tolist()
    return math.sqrt(future / past) if past else math.nan


def judge_leak(leak: float) -> Check:
    """A prediction depends on what came before it, and on nothing else."""
    if leak <= _LEAK:
        return passed("causality", "no prediction depends on a later token")
    return failed(
        "causality",
        f"predictions depend on later tokens ({leak:.2g} of their dependence on earlier ones)",
        "the attention mask lets the future through: look at model/attention.py",
    )


@dataclass(frozen=True)
class LossFigures:
    """Mean losses of one batch in nats a token, after some steps on it; the same on all ranks."""

    train: float
    """As the forward pass of training reports it."""
    evaluation: tuple[float, float]
    """As the evaluation does, twice."""
    by_offset: dict[int, float]
    """Cross-entropy of the logits against the corpus' token so many places on; 1 is the next token."""


@torch.no_grad()
def loss_figures(bench: TrialEngine, corpus: Corpus, rows: list[int]) -> LossFigures:
    """Collective; `rows` are this rank's."""
    engine, raw = bench.engine, RawTokens(corpus, "train")
    ids, targets = sampler.tensors(bench.stream, rows, bench.seq_len, bench.device)
    count = (targets != IGNORED).sum()
    engine.train()
    train = engine(ids, targets).lm.double()
    engine.eval()
    evaluations = [engine.module.loss_sum(ids, targets).double() / count for _ in range(2)]
    by_offset = _by_offset(engine.module, raw, rows, bench)
    engine.train()
    means = (sum_over_ranks(torch.stack([train, *evaluations, *by_offset])) / bench.world.size).tolist()
    return LossFigures(means[0], (means[1], means[2]), dict(zip(OFFSETS, means[3:], strict=True)))


def _by_offset(module: Any, raw: RawTokens, rows: list[int], bench: TrialEngine) -> list[Tensor]:
    longest = max(OFFSETS) - 1  # tokens after the row that the furthest targets need
    rows_of_ids = [
        torch.from_numpy(raw.read(row * bench.seq_len, bench.seq_len + 1 + longest).astype("int64")) for row in rows
    ]
    ids = torch.stack(
        [F.pad(row, (0, bench.seq_len + 1 + longest - len(row)), value=IGNORED) for row in rows_of_ids]
    ).to(bench.device)
    inputs, config = ids[:, : bench.seq_len], bench.config
    mask = document_mask(inputs, config.bos_token_id, config.eos_token_id) if config.mask_documents else None
    logits = module.logits(inputs, mask=mask).float().flatten(0, 1)
    return [
        F.cross_entropy(logits, ids[:, offset : offset + bench.seq_len].flatten(), ignore_index=IGNORED).double()
        for offset in OFFSETS
    ]


def judge_loss(found: LossFigures, precision: str) -> Check:
    """The reported loss is the cross-entropy of the logits against the next token of the corpus."""
    true, tolerance = found.by_offset[1], _TOLERANCE[precision]
    if abs(found.train - true) <= tolerance:
        return passed("targets", f"the inputs shifted by one; reported loss {found.train:.3f}, by hand {true:.3f}")
    near = min(OFFSETS, key=lambda offset: abs(found.by_offset[offset] - found.train))
    what = ""
    if abs(found.by_offset[near] - found.train) <= tolerance:
        place = {0: "the input itself", 1: "the next token"}.get(near, f"the token {near} places on")
        what = f": it is that of {place}"
    return failed(
        "targets",
        f"the reported loss is {found.train:.3f} nats, the cross-entropy of the next token is {true:.3f}{what}",
        "look at the targets (training/sampler.py) and at the loss (model/loss.py)",
    )


def judge_evaluation(found: LossFigures, precision: str, *, drops_tokens: bool) -> Check:
    """Evaluation has no randomness, and sees the network that is trained."""
    first, second = found.evaluation
    if abs(first - second) > 1e-6 * abs(first) or math.isnan(first):
        return failed(
            "evaluation_repeats",
            f"two evaluations of one batch give {first:.5f} and {second:.5f}",
            "something random is left on in evaluation, such as dropout: engine.eval() must switch it off",
        )
    apart = abs(first - found.train)
    if apart > _TOLERANCE[precision] and not drops_tokens:
        return failed(
            "evaluation_repeats",
            f"one batch has loss {found.train:.3f} in training and {first:.3f} in evaluation",
            "the two must compute the same: look at dropout and at what engine.eval() changes",
        )
    return passed("evaluation_repeats", f"twice {first:.4f} on one batch, {found.train:.4f} in training")

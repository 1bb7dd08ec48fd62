"""Checks of what the network computes: its loss at the start, what it can see, and whether evaluation agrees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.loss import IGNORED
from training import data_sampler
from training.preflight.data_checks import OFFSETS
from training.preflight.report import Result, failed, passed
from training.preflight.trial_engine import TrialEngine
from training.processes.process_group import sum_over_ranks

_TOLERANCE = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.1}  # nats, between two ways to compute one mean loss
_LEAK_FAILS = 1e-6  # of the gradient that the past gets; masked attention gives exactly 0
_START_TOLERANCE = 0.3  # nats about ln(V); init_weights promises 0.15


def check_loss_at_start(loss: float, vocab_size: int, *, trained: bool = False) -> Result:
    """Check that an untrained network gives every token the same chance, and that a `trained` one knows more."""
    expected = math.log(vocab_size)
    if trained:
        text = f"{loss:.3f} nats a token with the weights of --init_from, {expected:.3f} would be pure chance"
        if loss < expected:
            return passed(text)
        return failed(text, "its weights or its tokenizer do not belong together, or to this text")
    text = f"{loss:.3f} nats a token, ln({vocab_size:,}) is {expected:.3f}"
    if abs(loss - expected) <= _START_TOLERANCE:
        return passed(text)
    if not math.isfinite(loss):
        return failed(text, "the first forward pass overflows: check the initial weights and the precision")
    if loss > expected:
        hint = "the initial logits are too large: check the embedding's scale (initializer_range)"
        return failed(f"{text}: the untrained network is confident, and wrong", hint)
    hint = "look for answers in the inputs, or padding in the targets"
    return failed(f"{text}: it knows its targets before it has learned", hint)


# --- causality --------------------------------------------------------------------------------------------------------


def measure_future_leak(trial: TrialEngine) -> float:
    """Return the gradient that inputs get from earlier losses, as a share of that from later ones; 0 is right.

    Collective. It goes through `loss_sum`, whose path from ids to hidden states is that of training.
    """
    module = trial.engine.module
    row = torch.from_numpy(trial.stream.batch(trial.rows(1), trial.seq_len)).to(trial.device)
    ids, targets = row[:, :-1].contiguous(), row[:, 1:].contiguous()  # of all tokens, whether they count or not
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


def check_causality(leak: float) -> Result:
    """Check that a prediction depends on what came before it, and on nothing else."""
    if leak <= _LEAK_FAILS:
        return passed("no prediction depends on a later token")
    return failed(
        f"predictions depend on later tokens ({leak:.2g} of their dependence on earlier ones)",
        "the attention mask lets the future through: check model/attention.py",
    )


# --- loss and evaluation ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossFigures:
    """Mean losses of one batch in nats a token, after some steps on it; the same on all ranks."""

    train: float
    """The loss that the forward pass of training reports."""
    evaluation: tuple[float, float]
    """The losses of two evaluations."""
    by_offset: dict[int, float]
    """Cross-entropy of the logits against the corpus' token so many places on; 1 is the next token."""


@torch.no_grad()
def measure_losses(trial: TrialEngine, rows: list[int]) -> LossFigures:
    """Compute the loss of this rank's `rows` in several ways; collective."""
    engine = trial.engine
    ids, targets = data_sampler.tensors(trial.stream, rows, trial.seq_len, trial.device)
    count = (targets != IGNORED).sum()
    engine.train()
    train = trial.losses(rows).lm.double()
    engine.eval()
    evaluations = [engine.module.loss_sum(ids, targets).double() / count for _ in range(2)]
    by_offset = _losses_by_offset(trial, rows)
    engine.train()
    means = (sum_over_ranks(torch.stack([train, *evaluations, *by_offset])) / trial.world.size).tolist()
    return LossFigures(means[0], (means[1], means[2]), dict(zip(OFFSETS, means[3:], strict=True)))


def _losses_by_offset(trial: TrialEngine, rows: list[int]) -> list[Tensor]:
    """Return the cross-entropy against the corpus' token so many places on, at the positions whose target counts.

    Which count comes from the corpus, since the targets that training cuts are what is checked. The tokens behind a
    row's last target are left out.
    """
    ids = torch.from_numpy(trial.stream.batch(rows, trial.seq_len)).to(trial.device)
    following = F.pad(ids, (0, max(OFFSETS)), value=IGNORED)
    counted = trial.stream.counted(rows, trial.seq_len)
    if counted is not None:
        uncounted = torch.from_numpy(~counted).to(trial.device)
    else:
        uncounted = torch.zeros_like(ids[:, :-1], dtype=torch.bool)
    logits = trial.engine.module.packed_logits(ids[:, :-1].contiguous()).float().flatten(0, 1)
    tokens = (following[:, offset : offset + trial.seq_len].masked_fill(uncounted, IGNORED) for offset in OFFSETS)
    return [F.cross_entropy(logits, others.flatten(), ignore_index=IGNORED).double() for others in tokens]


def check_loss(losses: LossFigures, precision: str) -> Result:
    """Check that the reported loss is the cross-entropy of the logits against the next token of the corpus."""
    expected, tolerance = losses.by_offset[1], _TOLERANCE[precision]
    if abs(losses.train - expected) <= tolerance:
        return passed(f"the inputs shifted by one; reported loss {losses.train:.3f}, recomputed {expected:.3f}")
    text = f"the reported loss is {losses.train:.3f} nats, the cross-entropy of the next token is {expected:.3f}"
    near = min(OFFSETS, key=lambda offset: abs(losses.by_offset[offset] - losses.train))
    if abs(losses.by_offset[near] - losses.train) <= tolerance:
        token = {0: "the input itself", 1: "the next token"}.get(near, f"the token {near} places on")
        text += f": it is that of {token}"
    return failed(text, "check the targets (training/data_sampler.py) and at the loss (model/loss.py)")


def check_evaluation_repeats(losses: LossFigures, precision: str, *, drops_tokens: bool) -> Result:
    """Check that evaluation has no randomness, and sees the network that is trained."""
    first, second = losses.evaluation
    if abs(first - second) > 1e-6 * abs(first) or math.isnan(first):
        return failed(
            f"two evaluations of one batch give {first:.5f} and {second:.5f}",
            "something random is left on in evaluation, such as dropout: engine.eval() must switch it off",
        )
    if abs(first - losses.train) > _TOLERANCE[precision] and not drops_tokens:
        return failed(
            f"one batch has loss {losses.train:.3f} in training and {first:.3f} in evaluation",
            "the two must compute the same: check dropout and at what engine.eval() changes",
        )
    return passed(f"twice {first:.4f} on one batch, {losses.train:.4f} in training")

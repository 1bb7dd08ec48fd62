"""All that is measured on a model, its text and its run: what the rules (diagnosis/rules) look at.

Shapes in names: S tokens, E experts, H hidden size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus.ngram_baselines import NGramBaselines
from diagnosis.losses import Losses, measure_losses, seen, sequences, spread
from diagnosis.measured_text import Text
from diagnosis.models import ModelUnderTest
from evaluation.documents import documents
from evaluation.repetition import RepetitionMetrics, repetition_rate
from evaluation.rows import evaluation_rows
from evaluation.run_record import Curve, RunRecord
from model import CausalLM
from model.init import init_weights

HELD_OUT_TOKENS, TRAIN_TOKENS, ROUTED_TOKENS = 40_000, 16_000, 2_000
WINDOW, REPETITIVE = 128, 0.5  # tokens; share of repeated 4-grams above which a window of text repeats itself
WINDOWED_TOKENS, HASHED_TOKENS = 400_000, 60_000_000
MOST_INITIAL_PARAMETERS = 400_000_000  # drawing the initial weights of a larger model would take too long
DEAD = 0.1  # of its even share: an expert below that is not in use


@dataclass(frozen=True)
class TrainingText:
    """Shares of the training documents that are copies of another one, and of the text's windows that repeat
    themselves; `copies` is how often the most frequent document occurs."""

    duplicates: float
    copies: int
    repetitive: float


@dataclass(frozen=True)
class WeightChange:
    """From the initial weights W0 to W: medians over all matrices but the embedding of rms(W - W0) / rms(W0) and of
    rms(W) / rms(W0), the first of the embedding, and the smallest median of a norm's weights, which begin at 1."""

    moved: float
    grown: float
    embedding_moved: float
    smallest_norm: float


@dataclass
class Measurements:
    """None stands for what could not be measured."""

    vocab_size: int
    run: RunRecord | None = None
    baselines: NGramBaselines | None = None
    parameters: int | None = None
    held_out: Losses | None = None
    train: Losses | None = None
    finite: bool = True
    """Whether the model's output is finite."""
    true: RepetitionMetrics | None = None
    sampled: RepetitionMetrics | None = None
    greedy: RepetitionMetrics | None = None
    greedy_by_default: bool = False
    training_text: TrainingText | None = None
    near_duplicates: float | None = None
    weights: WeightChange | None = None
    expert_load: list[list[float]] | None = None
    """For each layer the experts' shares of the tokens; None for a dense model."""
    own_text: bool = True
    """Whether the text is that of the run; true for a model without a run, which has no other."""
    recorded_val_loss: float | None = None
    """What the run recorded for the saved weights, if `held_out` is on the same rows."""

    def curve(self, split: str, key: str) -> Curve:
        """Return (step, value) of one metric of the run, empty without a run."""
        return self.run.curve(split, key) if self.run else []

    @property
    def loss(self) -> float | None:
        """The model's held-out loss, measured or else as last recorded."""
        curve = self.curve("val", "loss")
        return self.held_out.loss if self.held_out else curve[-1][1] if curve else None

    @property
    def uses_context(self) -> bool:
        """Whether the loss is below the bigram baseline: the model uses more than the last token."""
        return self.loss is not None and self.baselines is not None and self.loss < self.baselines.bigram

    @property
    def gap(self) -> float:
        """Held-out loss minus training loss, 0 if unknown."""
        return self.held_out.loss - self.train.loss if self.held_out and self.train else 0.0

    @property
    def dead_experts(self) -> float:
        """The share of all experts that are not in use, 0 if unknown."""
        shares = [share * len(layer) for layer in self.expert_load or [] for share in layer]
        return sum(share < DEAD for share in shares) / len(shares) if shares else 0.0


def measure_model(m: Measurements, model: ModelUnderTest, text: Text) -> None:
    """Fill in what needs the model and the text, but for generated text. FloatingPointError if it is not finite."""
    run, m.parameters = m.run, model.parameters
    seq_len = min(run.seq_len if run else 512, model.positions)
    own_rows = run is not None and text.is_own and text.held_out.num_rows(seq_len)
    if not own_rows:
        seq_len = min(seq_len, max(8, len(text.held_out) // 4 or 512))
    tokens = run.flags.get("eval_tokens") if run and own_rows else None
    rows = evaluation_rows(own_rows, tokens, seq_len) if own_rows and isinstance(tokens, int) else None
    held_out = sequences(model, text.held_out, seq_len, HELD_OUT_TOKENS, rows)
    m.held_out = measure_losses(model, held_out, len(rows) if rows else None)
    m.train = measure_losses(model, sequences(model, text.train, seq_len, TRAIN_TOKENS))
    if run and run.best and text.is_own and seq_len == run.seq_len:
        m.recorded_val_loss = run.best[1]
    m.own_text = text.is_own or run is None
    m.weights = measure_weight_change(model, run)
    m.expert_load = measure_expert_load(model, held_out)
    m.greedy_by_default = model.default_decoding is not None and model.default_decoding.greedy


def measure_text(m: Measurements, text: Text, bos_id: int | None, eos_id: int) -> None:
    """Fill in what the training text alone shows: without an EOS, which separates its documents, only its report."""
    report = text.report or {}
    found, near = report.get("documents"), report.get("duplicates", {}).get("near")
    if near and found and text.settings.get("dedup") != "near":
        m.near_duplicates = near / found
    digests = Counter(
        hashlib.blake2b(ids.astype(np.uint32).tobytes(), digest_size=12).digest()
        for ids in (documents(text.train, bos_id, eos_id, HASHED_TOKENS) if eos_id >= 0 else ())
    )
    if not digests:
        return
    windows = (
        ids[start : start + WINDOW].tolist()
        for ids in documents(text.train, bos_id, eos_id, WINDOWED_TOKENS, places=16)
        for start in range(0, len(ids) - WINDOW // 4 + 1, WINDOW)  # a shorter rest has little that it could repeat
    )
    rates = [rate for window in windows if (rate := repetition_rate(window)) is not None]
    repetitive = float(np.mean([rate > REPETITIVE for rate in rates])) if rates else 0.0
    m.training_text = TrainingText(1 - len(digests) / digests.total(), max(digests.values()), repetitive)


def measure_expert_load(model: ModelUnderTest, ids: list[np.ndarray]) -> list[list[float]] | None:
    """Return for each layer the experts' shares of the tokens of some sequences; None for a dense model."""
    if not model.routers or not ids:
        return None
    counts = [torch.zeros(len(weight_EH)) for _, weight_EH in model.routers]

    def count(layer: int, weight_EH: Tensor) -> Callable[[nn.Module, tuple], None]:
        def hook(_module: nn.Module, args: tuple) -> None:
            # from the router's input: what it returns differs between model families
            logits_SE = F.linear(args[0].detach().float().reshape(-1, weight_EH.shape[1]), weight_EH.float())
            chosen = logits_SE.topk(model.experts_per_token, -1).indices.flatten().cpu()
            counts[layer] += torch.bincount(chosen, minlength=len(weight_EH))

        return hook

    with contextlib.ExitStack() as hooks:
        for layer, (module, weight_EH) in enumerate(model.routers):
            hooks.enter_context(module.register_forward_pre_hook(count(layer, weight_EH.detach())))
        for index in spread(len(ids), math.ceil(ROUTED_TOKENS * len(ids) / sum(map(len, ids)))):
            model.logits(seen(torch.from_numpy(ids[index]))[None, :-1])
    return [(found / found.sum()).tolist() for found in counts] if all(map(torch.any, counts)) else None


def measure_weight_change(model: ModelUnderTest, run: RunRecord | None) -> WeightChange | None:
    """Return how far the weights are from the initial ones of the run's seed; None for a model of another project."""
    # a run that began with trained weights has none that could be drawn again
    seed = run.flags.get("seed") if run and not run.flags.get("init_from") else None
    network = model.network
    if not isinstance(network, CausalLM) or not isinstance(seed, int) or model.parameters > MOST_INITIAL_PARAMETERS:
        return None
    initial = CausalLM(network.config)
    init_weights(initial, network.config, seed)
    before = dict(initial.named_parameters())
    moved, grown, norms, embedding = [], [], [], 0.0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                norms.append(float(parameter.float().abs().median()))
                continue
            now, start = parameter.float().cpu(), before[name]
            size = start.square().mean().sqrt()
            change = float((now - start).square().mean().sqrt() / size)
            if "embed" in name:
                embedding = change
            else:
                moved.append(change)
                grown.append(float(now.square().mean().sqrt() / size))
    if not np.isfinite([*moved, embedding]).all():
        return None
    return WeightChange(float(np.median(moved)), float(np.median(grown)), embedding, min(norms))

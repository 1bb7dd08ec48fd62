"""What is measured on a model, its text and its run: the facts that parrot/causes.py judges by.

Shapes in names: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from corpus.ladder import Ladder
from corpus.rows import evaluation_rows
from corpus.shards import TokenStream
from model import CausalLM, GenerationError, ModelConfig
from model.init import init_weights
from parrot import probe as probes
from parrot.probe import Probe
from parrot.repetition import Figures, measure, repetition
from parrot.run import RunRecord
from parrot.subject import GREEDY, SAMPLED, Decoding, OwnModel, Subject
from parrot.text import Text, documents

OFFSETS = (0, 1, 2, 3)
HELD_OUT_TOKENS, TRAIN_TOKENS = 40_000, 16_000
FLOP_BUDGET = 4e11  # of a loss on a CPU, some ten seconds; a GPU gets a hundred times that
FEWEST_ROWS = 8
LOGITS_AT_ONCE = 2**24

WINDOW, REPETITIVE = 128, 0.5  # tokens; share of repeated 4-grams over which a window of text repeats itself
DOCUMENT_TOKENS, HASHED_TOKENS = 400_000, 60_000_000
MOST_INITIAL_PARAMETERS = 400_000_000  # drawing the starting weights of a larger model would take too long


@dataclass(frozen=True)
class Losses:
    """Means over the rows of a split. `offsets[k]`: nats of the prediction at t on the token at t + k; 1 is right."""

    loss: float
    error: float
    """Standard error of `loss`, 0 where all rows were measured."""
    offsets: dict[int, float]
    pad_after_end: float | None
    tokens: int


@dataclass(frozen=True)
class Data:
    """Of the training text: share of its documents that are copies of another one, and of its windows of WINDOW tokens
    that repeat themselves; `copies` is how often the document that occurs most stands there."""

    duplicates: float
    copies: int
    repetitive: float
    documents: int


@dataclass(frozen=True)
class Weights:
    """Of the matrices but the embedding, against the values that the run began with: medians of rms(W - W0) / rms(W0)
    and of rms(W) / rms(W0)."""

    moved: float
    grown: float


@dataclass(frozen=True)
class Router:
    """Per layer: share of the routes by expert, and mean entropy of a token's router probabilities over ln E."""

    load: list[list[float]]
    entropy: list[float] | None


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at. None is what could not be measured."""

    vocab_size: int
    run: RunRecord | None = None
    parameters: int | None = None
    ladder: Ladder | None = None
    held_out: Losses | None = None
    train: Losses | None = None
    finite: bool = True
    true: Figures | None = None
    sampled: Figures | None = None
    greedy: Figures | None = None
    greedy_by_default: bool = False
    data: Data | None = None
    near_duplicates: float | None = None
    weights: Weights | None = None
    router: Router | None = None
    recorded_val_loss: float | None = None
    """What the run recorded for the saved weights, where `held_out` is on the same rows."""

    @property
    def loss(self) -> float | None:
        """Held-out loss of the model, nats a token: measured, or else as last recorded."""
        if self.held_out is not None:
            return self.held_out.loss
        curve = self.run.curve("val", "loss") if self.run else []
        return curve[-1][1] if curve else None


def held_out_rows(text: Text, run: RunRecord | None, seq_len: int) -> list[int]:
    """The rows that training evaluates on, where this is the run's own corpus; else all, spread."""
    rows = text.held_out.num_rows(seq_len)
    wanted = run.flags.get("eval_tokens") if run and text.is_own else None
    return evaluation_rows(rows, wanted if isinstance(wanted, int) else HELD_OUT_TOKENS, seq_len) if rows else []


def losses(subject: Subject, stream: TokenStream, rows: list[int], seq_len: int, most_tokens: int) -> Losses | None:
    """Mean losses over at most `most_tokens` of the rows, fewer for a large model; None without rows.

    FloatingPointError where the model's output is not finite.
    """
    if not rows:
        return None
    chosen = _spread(rows, _affordable(subject, most_tokens) // seq_len)
    batch = max(1, LOGITS_AT_ONCE // (seq_len * subject.vocab_size))
    sums = torch.zeros(len(OFFSETS), dtype=torch.float64)
    counts = torch.zeros(len(OFFSETS), dtype=torch.float64)
    per_row: list[float] = []
    padding = torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(chosen), batch):
        ids_BT = torch.from_numpy(stream.batch(chosen[first:first + batch], seq_len))
        log_p_BTV = subject.logits(ids_BT[:, :-1]).log_softmax(-1).cpu()
        for place, offset in enumerate(OFFSETS):
            nats_BT = _nats(log_p_BTV, ids_BT, offset)
            sums[place] += nats_BT.double().sum()
            counts[place] += nats_BT.numel()
            if offset == 1:
                per_row += nats_BT.double().mean(-1).tolist()
        padding += _padding(log_p_BTV, ids_BT, subject)
    means = (sums / counts).tolist()
    if not all(map(math.isfinite, means)):
        raise FloatingPointError("the model's output is not finite")
    error = 0.0 if len(chosen) == len(rows) or len(chosen) < 2 else float(np.std(per_row, ddof=1) / len(chosen)**0.5)
    return Losses(means[OFFSETS.index(1)], error, dict(zip(OFFSETS, means, strict=True)),
                  float(padding[0] / padding[1]) if padding[1] else None, int(counts[OFFSETS.index(1)]))


def _affordable(subject: Subject, most_tokens: int) -> int:
    budget = FLOP_BUDGET * (1 if subject.device.type == "cpu" else 100)
    return int(min(most_tokens, budget / (2 * subject.active_parameters)))


def _spread(rows: list[int], count: int) -> list[int]:
    """`count` of the rows (FEWEST_ROWS at the least), evenly over all of them."""
    count = min(len(rows), max(FEWEST_ROWS, count))
    return [rows[i * len(rows) // count] for i in range(count)]


def _nats(log_p_BTV: Tensor, ids_BT: Tensor, offset: int) -> Tensor:
    """(B, positions) of -log p(token at t + offset) by the prediction at t."""
    positions = min(log_p_BTV.shape[1], ids_BT.shape[1] - offset)
    targets_BT1 = ids_BT[:, offset:offset + positions, None]
    return -log_p_BTV[:, :positions].gather(-1, targets_BT1)[..., 0]


def _padding(log_p_BTV: Tensor, ids_BT: Tensor, subject: Subject) -> Tensor:
    """(sum of p(padding) behind end marks, number of end marks)."""
    if subject.pad_id is None or subject.end_id < 0:
        return torch.zeros(2, dtype=torch.float64)
    after_end = log_p_BTV[..., subject.pad_id][ids_BT[:, :-1] == subject.end_id]
    return torch.tensor([after_end.double().exp().sum().item(), len(after_end)], dtype=torch.float64)


def router(subject: Subject, stream: TokenStream, seq_len: int, rows: int = 4) -> Router | None:
    """Where the routers send held-out tokens; None for a dense model."""
    if not subject.gates() or not stream.num_rows(seq_len):
        return None
    chosen = evaluation_rows(stream.num_rows(seq_len), rows * seq_len, seq_len)
    with subject.watch_router() as seen:
        subject.logits(torch.from_numpy(stream.batch(chosen, seq_len))[:, :-1])
    load, entropy = [], []
    for parts in seen:
        p_SE = torch.cat(parts)
        chosen_E = torch.bincount(p_SE.topk(subject.experts_per_token, -1).indices.flatten(), minlength=p_SE.shape[1])
        load.append((chosen_E / chosen_E.sum()).tolist())
        entropy.append(float(-(p_SE * p_SE.clamp_min(1e-30).log()).sum(-1).mean() / math.log(p_SE.shape[1])))
    return Router(load, entropy)


def weights(subject: Subject, run: RunRecord | None) -> Weights | None:
    """How far the matrices are from the start that the run's seed gives them; None for a model of another origin."""
    seed = run.flags.get("seed") if run else None
    if not isinstance(subject, OwnModel) or not isinstance(seed, int) or subject.parameters > MOST_INITIAL_PARAMETERS:
        return None
    config: ModelConfig = subject.model.config
    start = CausalLM(config)
    init_weights(start, config, seed)
    before = dict(start.named_parameters())
    moved, grown = [], []
    with torch.no_grad():
        for name, now in subject.model.named_parameters():
            if now.ndim < 2 or "embed" in name:
                continue
            size = before[name].square().mean().sqrt()
            moved.append(float((now.float().cpu() - before[name]).square().mean().sqrt() / size))
            grown.append(float(now.float().cpu().square().mean().sqrt() / size))
    return Weights(float(np.median(moved)), float(np.median(grown))) if np.isfinite(moved).all() else None


def data(text: Text, begin_id: int | None, end_id: int) -> Data | None:
    """Copies among the training documents, and text that repeats itself; None without end marks to part them."""
    if end_id < 0 or not len(text.train):
        return None
    digests = Counter(hashlib.blake2b(ids.astype(np.uint32).tobytes(), digest_size=12).digest()
                      for ids in documents(text.train, begin_id, end_id, HASHED_TOKENS))
    total = sum(digests.values())
    if not total:
        return None
    windows = [repetition(window) for ids in documents(text.train, begin_id, end_id, DOCUMENT_TOKENS, pieces=16)
               for window in _windows(ids.tolist())]
    known = [share for share in windows if share is not None]
    repetitive = sum(share > REPETITIVE for share in known) / len(known) if known else 0.0
    return Data(1 - len(digests) / total, max(digests.values()), repetitive, total)


def _windows(ids: list[int]) -> Iterator[list[int]]:
    """WINDOW tokens each; a rest of less than a quarter is left out, since little text repeats little."""
    for start in range(0, len(ids), WINDOW):
        if len(window := ids[start:start + WINDOW]) >= WINDOW // 4:
            yield window


def held_out_probe(text: Text, subject: Subject) -> Probe:
    """Prompts with their true continuations; short ones for a model of few positions, fewer for a large one."""
    count = 32 if subject.active_parameters < 2e8 or subject.device.type != "cpu" else 12
    room = min(subject.positions, 1024)
    prompt_tokens = min(probes.PROMPT_TOKENS, room // 3)
    new_tokens = min(probes.NEW_TOKENS, room - prompt_tokens)
    return probes.held_out(text.held_out, begin_id=subject.begin_id, end_id=subject.end_id, count=count,
                           prompt_tokens=prompt_tokens, new_tokens=new_tokens)


@dataclass(frozen=True)
class Written:
    """What a model wrote with some settings, its figures and the seconds that it took."""

    how: Decoding
    outputs: list[list[int]]
    figures: Figures
    seconds: float


def write(subject: Subject, probe: Probe, how: Decoding, seed: int = 0) -> Written:
    """Continue the prompts; GenerationError where the model is not finite."""
    started = time.perf_counter()
    outputs = probes.write(subject.generate(how), probe, end_id=subject.end_id, greedy=how.greedy, seed=seed)
    return Written(how, outputs, measure(probe.prompts, outputs), time.perf_counter() - started)


def shortened(probe: Probe, count: int, new_tokens: int) -> Probe:
    """A part of the prompts, spread over all of them, with shorter continuations."""
    count = min(count, len(probe.prompts))
    places = [i * len(probe.prompts) // count for i in range(count)]
    length = min(new_tokens, probe.new_tokens)
    return Probe([probe.prompts[i] for i in places], [probe.truths[i][:length] for i in places], length)


def with_writing(evidence: Evidence, subject: Subject, probe: Probe) -> tuple[Evidence, list[Written]]:
    """The repetition figures of the true text, of sampled and of greedy output added; as they were if not finite."""
    evidence = replace(evidence, true=measure(probe.prompts, probe.truths))
    try:
        sampled, greedy = write(subject, probe, SAMPLED), write(subject, probe, GREEDY)
    except GenerationError:
        return replace(evidence, finite=False), []
    return replace(evidence, sampled=sampled.figures, greedy=greedy.figures), [sampled, greedy]

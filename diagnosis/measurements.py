"""What is measured on a model, its text and its run: the facts that diagnosis/rules.py judges by.

Shapes in names: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus.ngram_baselines import NGramBaselines
from corpus.shards import TokenStream
from diagnosis.models import OwnModel, Subject
from diagnosis.run_record import RunRecord
from diagnosis.text import Text, documents
from evaluation.held_out_prompts import (
    GREEDY,
    NEW_TOKENS,
    PROMPT_TOKENS,
    SAMPLED,
    DecodingSettings,
    HeldOutPrompts,
    generate_continuations,
    select_prompts,
)
from evaluation.repetition import RepetitionMetrics, measure_repetition, repetition_rate
from evaluation.rows import evaluation_rows
from model import CausalLM, GenerationError, ModelConfig
from model.init import init_weights

OFFSETS = (0, 1, 2, 3)
HELD_OUT_TOKENS, TRAIN_TOKENS = 40_000, 16_000
FLOP_BUDGET = 4e11  # of a loss on a CPU, some ten seconds; a GPU gets a hundred times that
FEWEST_ROWS = 8
LOGITS_AT_ONCE = 2**24
ROUTED_TOKENS = 2_000
NOTHING = -1  # stands where a sequence has ended

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
    ladder: NGramBaselines | None = None
    held_out: Losses | None = None
    train: Losses | None = None
    finite: bool = True
    true: RepetitionMetrics | None = None
    sampled: RepetitionMetrics | None = None
    greedy: RepetitionMetrics | None = None
    greedy_by_default: bool = False
    data: Data | None = None
    near_duplicates: float | None = None
    weights: Weights | None = None
    router: Router | None = None
    own_text: bool = True
    """Whether the text is that of the run; true for a model without one, which has no other."""
    recorded_val_loss: float | None = None
    """What the run recorded for the saved weights, where `held_out` is on the same rows."""

    @property
    def loss(self) -> float | None:
        """Held-out loss of the model, nats a token: measured, or else as last recorded."""
        if self.held_out is not None:
            return self.held_out.loss
        curve = self.run.curve("val", "loss") if self.run else []
        return curve[-1][1] if curve else None


def sequences(
    subject: Subject, stream: TokenStream, seq_len: int, most_tokens: int, rows: list[int] | None = None
) -> list[np.ndarray]:
    """Ids to measure a loss on, at most `most_tokens` of them, spread over the stream and fewer for a large model.

    Our models take rows of packed documents (`rows`, or any) as in training. A foreign one gets each document by
    itself, because nothing would keep it from looking at the document before; without a begin mark the end mark stands
    there, as it does in text that is packed.
    """
    most = _affordable(subject, most_tokens)
    if subject.masks_documents:
        if rows is None:
            rows = evaluation_rows(stream.num_rows(seq_len), most, seq_len) if stream.num_rows(seq_len) else []
        chosen = _spread(rows, most // seq_len)
        return list(stream.batch(chosen, seq_len)) if chosen else []
    end = [subject.end_id] if subject.end_id >= 0 else []
    before = end if subject.begin_id is None else []
    pieces = []
    for ids in documents(stream, subject.begin_id, subject.end_id, most, pieces=8) if end else [stream.read(0, most)]:
        whole = np.concatenate((before, ids, end)).astype(np.int64)
        pieces += [whole[start : start + seq_len + 1] for start in range(0, len(whole) - 1, seq_len)]
    return pieces


def own_rows(text: Text, run: RunRecord | None, seq_len: int) -> list[int] | None:
    """The rows that training evaluates on, where this is the run's own corpus."""
    rows, wanted = text.held_out.num_rows(seq_len), run.flags.get("eval_tokens") if run and text.is_own else None
    return evaluation_rows(rows, wanted, seq_len) if rows and isinstance(wanted, int) else None


def losses(subject: Subject, ids: list[np.ndarray], of: int | None = None) -> Losses | None:
    """Mean losses over sequences of ids, of which there are `of` in all; None without any.

    FloatingPointError where the model's output is not finite.
    """
    if not ids:
        return None
    sums, counts, padding = (torch.zeros(size, dtype=torch.float64) for size in (len(OFFSETS), len(OFFSETS), 2))
    per_sequence: list[float] = []
    for ids_BT in _batches(ids, subject.vocab_size):
        log_p_BTV = subject.logits(ids_BT[:, :-1].clamp_min(0)).log_softmax(-1).cpu()
        for place, offset in enumerate(OFFSETS):
            nats_BT, known_BT = _nats(log_p_BTV, ids_BT, offset)
            sums[place] += nats_BT.double().sum()
            counts[place] += known_BT.sum()
            if offset == 1:
                per_sequence += (nats_BT.double().sum(-1) / known_BT.sum(-1).clamp_min(1)).tolist()
        padding += _padding(log_p_BTV, ids_BT, subject)
    if not subject.masks_documents and subject.begin_id is not None:
        # packed text has the begin marks too, and the ladder counts them; behind an end mark they are certain
        counts[OFFSETS.index(1)] += sum(int(sequence[0] == subject.begin_id) for sequence in ids)
    means = (sums / counts.clamp_min(1)).tolist()
    if not all(map(math.isfinite, means)):
        raise FloatingPointError("the model's output is not finite")
    error = (
        0.0 if of is None or len(ids) >= of or len(ids) < 2 else float(np.std(per_sequence, ddof=1) / len(ids) ** 0.5)
    )
    return Losses(
        means[OFFSETS.index(1)],
        error,
        dict(zip(OFFSETS, means, strict=True)),
        float(padding[0] / padding[1]) if padding[1] else None,
        int(counts[OFFSETS.index(1)]),
    )


def _batches(ids: list[np.ndarray], vocab_size: int) -> Iterator[Tensor]:
    """(B, T) batches of like lengths, filled up with NOTHING on the right, where causal attention never looks."""
    ordered = sorted((sequence for sequence in ids if len(sequence) > 1), key=len, reverse=True)
    while ordered:
        size = max(1, LOGITS_AT_ONCE // (len(ordered[0]) * vocab_size))
        batch, ordered = ordered[:size], ordered[size:]
        ids_BT = torch.full((len(batch), len(batch[0])), NOTHING)
        for row, sequence in enumerate(batch):
            ids_BT[row, : len(sequence)] = torch.from_numpy(sequence)
        yield ids_BT


def _affordable(subject: Subject, most_tokens: int) -> int:
    budget = FLOP_BUDGET * (1 if subject.device.type == "cpu" else 100)
    return int(min(most_tokens, budget / (2 * subject.active_parameters)))


def _spread(rows: list[Any], count: int) -> list[Any]:
    """`count` of the rows (FEWEST_ROWS at the least), evenly over all of them."""
    count = min(len(rows), max(FEWEST_ROWS, count))
    return [rows[i * len(rows) // count] for i in range(count)]


def _nats(log_p_BTV: Tensor, ids_BT: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """(B, positions) of -log p(token at t + offset) by the prediction at t, 0 and false where none is."""
    positions = min(log_p_BTV.shape[1], ids_BT.shape[1] - offset)
    targets_BT = ids_BT[:, offset : offset + positions]
    # a prediction counts where the next token is known, so that every offset is measured at the same places
    known_BT = (targets_BT != NOTHING) & (ids_BT[:, 1 : positions + 1] != NOTHING)
    nats_BT = -log_p_BTV[:, :positions].gather(-1, targets_BT.clamp_min(0)[..., None])[..., 0]
    return nats_BT.where(known_BT, torch.zeros(())), known_BT


def _padding(log_p_BTV: Tensor, ids_BT: Tensor, subject: Subject) -> Tensor:
    """(sum of p(padding) behind end marks, number of end marks)."""
    if subject.pad_id is None or subject.end_id < 0:
        return torch.zeros(2, dtype=torch.float64)
    after_end = log_p_BTV[..., subject.pad_id][ids_BT[:, :-1] == subject.end_id]
    return torch.tensor([after_end.double().exp().sum().item(), len(after_end)], dtype=torch.float64)


def router(subject: Subject, ids: list[np.ndarray]) -> Router | None:
    """Where the routers send the tokens of some sequences; None for a dense model."""
    if not subject.gates() or not ids:
        return None
    count = math.ceil(ROUTED_TOKENS * len(ids) / sum(map(len, ids)))
    with subject.watch_router() as seen:
        for sequence in _spread(ids, count):
            subject.logits(torch.from_numpy(sequence)[None, :-1])
    load, entropy = [], []
    for parts in seen:
        if not parts:
            return None
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
    digests = Counter(
        hashlib.blake2b(ids.astype(np.uint32).tobytes(), digest_size=12).digest()
        for ids in documents(text.train, begin_id, end_id, HASHED_TOKENS)
    )
    total = sum(digests.values())
    if not total:
        return None
    windows = [
        repetition_rate(window)
        for ids in documents(text.train, begin_id, end_id, DOCUMENT_TOKENS, pieces=16)
        for window in _windows(ids.tolist())
    ]
    known = [share for share in windows if share is not None]
    repetitive = sum(share > REPETITIVE for share in known) / len(known) if known else 0.0
    return Data(1 - len(digests) / total, max(digests.values()), repetitive, total)


def _windows(ids: list[int]) -> Iterator[list[int]]:
    """WINDOW tokens each; a rest of less than a quarter is left out, since little text repeats little."""
    for start in range(0, len(ids), WINDOW):
        if len(window := ids[start : start + WINDOW]) >= WINDOW // 4:
            yield window


def held_out_probe(text: Text, subject: Subject) -> HeldOutPrompts:
    """Prompts with their true continuations; short ones for a model of few positions, fewer for a large one."""
    count = 32 if subject.active_parameters < 2e8 or subject.device.type != "cpu" else 12
    room = min(subject.positions, 1024)
    prompt_tokens = min(PROMPT_TOKENS, room // 3)
    new_tokens = min(NEW_TOKENS, room - prompt_tokens)
    return select_prompts(
        text.held_out,
        bos_id=subject.begin_id,
        eos_id=subject.end_id,
        count=count,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )


@dataclass(frozen=True)
class Written:
    """What a model wrote with some settings, its figures and the seconds that it took."""

    how: DecodingSettings
    outputs: list[list[int]]
    figures: RepetitionMetrics
    seconds: float


def write(subject: Subject, probe: HeldOutPrompts, how: DecodingSettings, seed: int = 0) -> Written:
    """Continue the prompts; GenerationError where the model is not finite."""
    started = time.perf_counter()
    outputs = generate_continuations(subject.generate(how), probe, eos_id=subject.end_id, seed=seed)
    return Written(how, outputs, measure_repetition(probe.prompts, outputs), time.perf_counter() - started)


def with_writing(evidence: Evidence, subject: Subject, probe: HeldOutPrompts) -> tuple[Evidence, list[Written]]:
    """The repetition figures of the true text, of sampled and of greedy output added; as they were if not finite."""
    evidence = replace(evidence, true=measure_repetition(probe.prompts, probe.continuations))
    try:
        sampled, greedy = write(subject, probe, SAMPLED), write(subject, probe, GREEDY)
    except GenerationError:
        return replace(evidence, finite=False), []
    return replace(evidence, sampled=sampled.figures, greedy=greedy.figures), [sampled, greedy]

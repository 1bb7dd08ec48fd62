"""Checks of the data as the run will read it; rank 0 does them alone, without a model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from corpus.cleaning.normalization import ngram_hashes
from corpus.shards import Corpus, MaskedStream, TokenStream
from model.loss import IGNORED
from training import data_sampler
from training.preflight.report import Result, failed, passed, warned

OFFSETS = (0, 1, 2, 3)
_COMPARED_ROWS = 64
_PASSAGE = 32  # tokens: about 50 characters, more than stock phrases have
_SAMPLED = 16  # one passage in so many, chosen by its content and so alike in both splits
_CHUNK = 2**20  # tokens read at once
_MAX_VALIDATION = 2**21  # tokens
_NOTHING = -1  # where a row has no text
_PADDING_WARNS = 0.25  # of rows with conversations, which are laid into rows whole
_OVERLAP_WARNS, _OVERLAP_FAILS = 0.05, 0.5


def _evenly_spaced(total: int, wanted: int) -> list[int]:
    """Return up to `wanted` of 0 .. total - 1."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int)).tolist()


# --- targets and padding ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFigures:
    """Shares of 0 to 1 over the rows that were compared."""

    matches: dict[int, float]
    """offset -> targets that are the input so many places on; 1 is right."""
    right_targets: float
    """Targets that count and are the corpus' own next token."""
    padded_inputs: float
    padded_targets: float
    """Targets that are padding and count in the loss."""
    ignored_targets: float
    from_corpus: float
    """Rows that are the corpus' own, token for token."""
    answers: bool = False
    """Whether only some tokens are to be learned, such as the answers of conversations."""
    wrong_answers: float = 0.0
    """Of those tokens, the share that is not what the corpus' mask names."""


def compare_rows(corpus: Corpus, seq_len: int, pad_id: int) -> RowFigures:
    """Read rows through `training.data_sampler.tensors`, as every step does, and compare them with the stream."""
    stream = corpus.split("train")
    rows = _evenly_spaced(stream.num_rows(seq_len), _COMPARED_ROWS)
    inputs, targets = (part.numpy() for part in data_sampler.tensors(stream, rows, seq_len, torch.device("cpu")))
    truth = np.stack([_row(stream, row, seq_len) for row in rows])
    same_shape = inputs.shape == truth[:, :-1].shape
    padded_inputs, padded_targets = _padding(inputs, truth[:, :-1], pad_id), _padding(targets, truth[:, 1:], pad_id)
    counts = (targets != IGNORED) & ~padded_targets
    from_corpus = (inputs == truth[:, :-1]) | (truth[:, :-1] == _NOTHING) if same_shape else np.zeros((1, 1), bool)
    return RowFigures(
        matches={offset: _match(inputs, targets, counts, offset) for offset in OFFSETS},
        right_targets=float((targets == truth[:, 1:])[counts].mean()) if same_shape and counts.any() else 1.0,
        padded_inputs=float(padded_inputs.mean()),
        padded_targets=float(padded_targets.mean()),
        ignored_targets=float((targets == IGNORED).mean()),
        from_corpus=float(from_corpus.all(-1).mean()),
        answers=isinstance(stream, MaskedStream),
        wrong_answers=_wrong_answers(inputs, targets, stream) if isinstance(stream, MaskedStream) else 0.0,
    )


def _row(stream: TokenStream, row: int, seq_len: int) -> np.ndarray:
    """Return a row as it is in the stream, (T + 1,), _NOTHING behind its whole documents."""
    if not isinstance(stream, MaskedStream):
        return stream.read(row * seq_len, seq_len + 1)
    ids = np.concatenate([stream.read(start, length) for start, length in stream.packed(seq_len).parts(row)])
    return np.pad(ids, (0, seq_len + 1 - len(ids)), constant_values=_NOTHING)


def _padding(ids: np.ndarray, truth: np.ndarray, pad_id: int) -> np.ndarray:
    """Return where rows are filled up at an end, bool (rows, T).

    The id alone says nothing: a text may hold it, as its EOS or as a word. Padding is not the text that is there.
    """
    fills = ids == pad_id
    to_the_end = np.logical_and.accumulate(fills[:, ::-1], axis=1)[:, ::-1]
    from_the_start = np.logical_and.accumulate(fills, axis=1)
    replaced = ids != truth if ids.shape == truth.shape else True
    return (to_the_end | from_the_start) & replaced


def _wrong_answers(inputs: np.ndarray, targets: np.ndarray, stream: MaskedStream) -> float:
    """Return the share of turns of which only a part counts; told from the ids, without the mask.

    A turn counts from the words after its role to its EOS, or not at all. (A line break may be in its role's token.)
    """
    turns = wrong = 0
    for ids, wanted in zip(inputs, targets, strict=True):
        begins = np.flatnonzero(ids == stream.bos_id)
        for begin, following in zip(begins, [*begins[1:], len(ids)], strict=True):
            ends = np.flatnonzero(wanted[begin:following] == stream.eos_id)
            learned = wanted[begin : begin + int(ends[0]) + 1 if len(ends) else following] != IGNORED
            places = np.flatnonzero(learned)
            turns += 1
            wrong += bool(len(places)) and not learned[places[0] :].all()
    return wrong / max(1, turns)


def _match(inputs: np.ndarray, targets: np.ndarray, counts: np.ndarray, offset: int) -> float:
    length = inputs.shape[1] - offset
    if length < 1 or not (counted := counts[:, :length]).any():
        return 0.0
    return float((targets[:, :length] == inputs[:, offset:])[counted].mean())


def check_row_targets(rows: RowFigures) -> Result | None:
    """Check that targets are the next tokens; None if they are, for the loss has yet to show that it uses them."""
    hint = "check training/data_sampler.py: targets are the inputs shifted by one, ids[:, 1:]"
    if rows.matches[1] < 1:
        offset = max(rows.matches, key=lambda offset: rows.matches[offset])
        if rows.matches[offset] < 0.9:
            return failed(f"only {rows.matches[1]:.1%} of the targets are the token that follows", hint)
        meaning = f"{offset} places on: the model learns to leave out {offset - 1} of {offset} tokens"
        if offset == 0:
            meaning = "the input itself: the model sees its answer and learns to copy"
        return failed(f"{rows.matches[offset]:.1%} of the targets are {meaning}", hint)
    if rows.right_targets < 1:
        return failed(f"{1 - rows.right_targets:.1%} of the targets are not the corpus' next token", hint)
    if rows.from_corpus < 1 and (rows.answers or not rows.padded_inputs):
        text = f"{1 - rows.from_corpus:.1%} of the rows are not those of the corpus"
        return failed(text, "check training/data_sampler.py and at what reads the shards")
    if rows.wrong_answers:
        text = f"of {rows.wrong_answers:.1%} of the turns only pieces count in the loss"
        return failed(text, "the .mask files do not belong to these shards: prepare the corpus again")
    return None


def check_padding(rows: RowFigures) -> Result:
    """Check that rows are full, and that no padding is predicted."""
    hint = "pack documents into full rows, as prepare.py does"
    if rows.padded_targets:
        text = f"{rows.padded_targets:.1%} of the targets are padding and count in the loss, which looks low for it"
        return failed(text, f"{hint}, or mark those targets with {IGNORED}")
    if rows.answers:
        text = f"{rows.padded_inputs:.1%} of every row is padding, {1 - rows.ignored_targets:.1%} counts: the answers"
        if rows.padded_inputs < _PADDING_WARNS:
            return passed(text)
        return warned(text, "a --max_seq_len that is a few times the usual conversation wastes less")
    if lost := max(rows.padded_inputs, rows.ignored_targets):
        return warned(f"{lost:.1%} of every row is padding: computed, and not learned from", hint)
    return passed("none: every row is full of text and every target counts")


# --- overlap ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """How much of the validation text is in the training text."""

    share: float
    """The part of the sampled validation passages, 0 to 1."""
    passages: int
    read: float
    """The part of the training text that was read, 0 to 1."""


def measure_overlap(corpus: Corpus, seconds: float) -> Overlap | None:
    """Look for passages of validation text in the training text; None where there is no text to compare.

    Passages of 32 tokens are sampled by their content, so that one that is sampled here is sampled there. The result is
    exact for the part of the training text that can be read in `seconds`, which is spread over the whole of it.
    """
    train, val = corpus.split("train"), corpus.split("val")
    val_starts = list(range(0, len(val), _CHUNK))
    chosen = _evenly_spaced(len(val_starts), _MAX_VALIDATION // _CHUNK)
    held_out = [_passage_hashes(val.read(val_starts[index], _CHUNK)) for index in chosen]
    known = np.unique(np.concatenate(held_out)) if held_out else np.empty(0, np.uint64)
    if not len(known) or len(train) < _PASSAGE:
        return None
    found, read, deadline = np.zeros(len(known), bool), 0, time.monotonic() + seconds
    for start in np.random.Generator(np.random.PCG64(0)).permutation(range(0, len(train), _CHUNK)):
        ids = train.read(int(start), _CHUNK + _PASSAGE - 1)  # a passage may begin in one chunk and end in the next
        found |= np.isin(known, _passage_hashes(ids))
        read += min(len(ids), _CHUNK)
        if time.monotonic() > deadline:
            break
    return Overlap(float(found.mean()), len(known), min(1.0, read / len(train)))


def _passage_hashes(ids: np.ndarray) -> np.ndarray:
    """Return hashes (uint64) of the sampled passages."""
    hashes = ngram_hashes(ids, _PASSAGE)
    return hashes[hashes % np.uint64(_SAMPLED) == 0]


def check_overlap(overlap: Overlap | None) -> Result:
    """Check that the validation loss is that of text that is not trained on."""
    if overlap is None:
        hint = "prepare with a --val_fraction: without it nobody sees overfitting"
        return warned("there is too little validation text to compare", hint)
    part = "" if overlap.read == 1 else f" (in the {overlap.read:.0%} of it that was read)"
    text = (
        f"{overlap.share:.1%} of {overlap.passages:,} validation passages of {_PASSAGE} tokens are in the training "
        f"text{part}"
    )
    hint = "prepare again with --dedup near, or give validation text of another source"
    if overlap.share > _OVERLAP_FAILS:
        return failed(f"{text}: the validation loss would be that of the training text", hint)
    if overlap.share > _OVERLAP_WARNS:
        return warned(text, hint)
    return passed(text)

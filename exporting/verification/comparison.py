"""`--verify`: the same documents through the trained model and through programs that serve it, and a table of both.

Shapes in names: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from common.errors import UserError
from corpus.reader import parse_chunk, read_chunks, text_files
from exporting.verification.backends import Backend, Reference, llama_cpp_backend, reference, transformers_backend

PROMPTS, PROMPT_CHARACTERS, NEW_TOKENS = 20, 24, 32
SPARE = 2  # positions for a BOS too many, and EOS
SHOWN = 3  # tokens in front of and behind a difference

# The mean difference of a logit that rounding explains, as a share of the logits' standard deviation, by the type of
# the weights: set above what small models of random weights showed. A quantised expert layer sends some tokens to
# another expert, so its limits are wide; that its weights are the model's is checked tensor by tensor (structure.py).
LIMITS = {"f32": 0.005, "f16": 0.01, "bf16": 0.05, "q8_0": 0.1, "q6_k": 0.2, "q5_0": 0.4, "q5_1": 0.4, "q5_k": 0.4}
COARSEST_LIMIT = 0.8


@dataclass
class Figures:
    """What was measured of one backend, over all documents; sums of which the properties are means."""

    documents: int = 0
    same_ids: int = 0
    largest: float = 0.0
    difference_sum: float = 0.0
    logits: int = 0
    square_sum: float = 0.0
    own_nats: float = 0.0
    own_eos_nats: float = 0.0
    nats: float = 0.0
    bytes: int = 0
    prompts: int = 0
    same_text: int = 0
    first_difference: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean difference of a logit."""
        return self.difference_sum / max(1, self.logits)

    @property
    def relative(self) -> float:
        """The mean difference as a share of the logits' standard deviation."""
        return self.mean / (math.sqrt(self.square_sum / max(1, self.logits)) or 1.0)

    @property
    def own_bits_per_byte(self) -> float:
        """Bits a byte of the trained model."""
        return self.own_nats / math.log(2) / max(1, self.bytes)

    @property
    def own_bits_without_eos(self) -> float:
        """The same for programs that measure a text alone, and do not ask where it ends."""
        return (self.own_nats - self.own_eos_nats) / math.log(2) / max(1, self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of the backend on the ids that it makes itself, as its user would measure it."""
        return self.nats / math.log(2) / max(1, self.bytes)

    def verdict(self, precision: str) -> list[str]:
        """Return why the backend is not the trained model, in sentences; empty if it is."""
        reasons = [self.first_difference] if self.first_difference else []
        reasons += self.faults
        limit = LIMITS.get(precision, COARSEST_LIMIT)
        if not self.relative <= limit and not self.faults:  # NaN is over the limit too
            reasons.append(
                f"the logits differ by {self.relative:.2%} of their spread on the same ids, where {precision} explains "
                f"{limit:.2%}"
            )
        return reasons


@dataclass(frozen=True)
class Document:
    """A text with its ids in training, and the trained model's logits and losses in nats (the last is that of EOS)."""

    text: str
    ids: list[int]
    logits_TV: np.ndarray
    nats_T: np.ndarray

    @classmethod
    def of(cls, text: str, own: Reference) -> Document:
        """Run a text through the trained model."""
        ids = own.encode(text)
        logits_TV = own.logits(ids)
        return cls(text, ids, logits_TV, _nats(logits_TV, ids, own.config.eos_token_id))


def verify(
    trained: Path,
    targets: Sequence[Path],
    data: Path,
    *,
    most_documents: int,
    most_tokens: int,
    say: Callable[[str], object],
) -> bool:
    """Print how each folder or GGUF file compares with the model in `trained`; return whether all of them are it.

    At most `most_documents` documents of `data` are taken, of each at most `most_tokens` tokens.
    """
    own = reference(trained)
    positions = min(own.config.max_position_embeddings, most_tokens + SPARE)
    backends = [_backend(path, own, positions) for path in targets]
    texts = [own.fit(text, positions - SPARE) for text in _documents(data, most_documents)]
    say(f"reference  {trained}, {len(texts):,} documents of {data}")
    figures = [Figures(faults=[*backend.faults, *_incomparable(own, backend)]) for backend in backends]
    for number, text in enumerate(texts, 1):
        document = Document.of(text, own)
        for backend, found in zip(backends, figures, strict=True):
            _compare_document(found, own, backend, document, positions)
        if number % max(1, len(texts) // 5) == 0 and number < len(texts):
            say(f"... {number:,} documents")
    new_tokens = min(NEW_TOKENS, positions // 2)
    for text in texts[:PROMPTS]:
        ids = own.encode(text[:PROMPT_CHARACTERS])[: positions - new_tokens]
        expected = own.greedy(ids, new_tokens)
        for backend, found in zip(backends, figures, strict=True):
            found.prompts += 1
            if not _incomparable(own, backend):
                found.same_text += backend.greedy(ids, new_tokens) == expected
    for line in _table(own, backends, figures):
        say(line)
    return not any(found.verdict(backend.precision) for backend, found in zip(backends, figures, strict=True))


def _backend(path: Path, own: Reference, positions: int) -> Backend:
    if path.is_dir():
        folder = path / "model" if (path / "model").is_dir() else path
        return transformers_backend(folder, own)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --verify folders of models and GGUF files")
    return llama_cpp_backend(path, own, positions)


def _documents(data: Path, most: int) -> list[str]:
    chunks = (chunk for file in text_files([data]) for chunk in read_chunks(file))
    texts = list(islice((text for chunk in chunks for text in parse_chunk(chunk).texts), most))
    if not texts:
        raise UserError(f'{data} has no text that could be read: write one {{"text": "..."}} on each line')
    return texts


def _incomparable(own: Reference, backend: Backend) -> list[str]:
    """Return why the logits of a backend cannot be laid beside ours, in a sentence; empty if they can."""
    if backend.vocab_size == own.vocab_size:
        return []
    return [f"it chooses among {backend.vocab_size:,} tokens instead of {own.vocab_size:,}"]


def _compare_document(found: Figures, own: Reference, backend: Backend, document: Document, positions: int) -> None:
    """Add a document to the figures of a backend."""
    eos_id, ids, own_logits_TV = own.config.eos_token_id, document.ids, document.logits_TV
    theirs = backend.encode(document.text)
    found.documents += 1
    found.bytes += len(document.text.encode("utf-8"))
    found.own_nats += float(document.nats_T.sum())
    found.own_eos_nats += float(document.nats_T[-1])
    found.same_ids += theirs == ids
    if theirs != ids:
        found.first_difference = found.first_difference or in_words(own, backend, ids, theirs)
    if _incomparable(own, backend):
        found.largest = found.difference_sum = found.nats = math.nan
        return
    logits_TV = backend.logits(ids)
    difference = np.abs(logits_TV - own_logits_TV)
    found.largest = max(found.largest, float(difference.max())) if np.isfinite(difference).all() else math.inf
    found.difference_sum += float(difference.sum(dtype=np.float64))
    found.square_sum += float(np.square(own_logits_TV - own_logits_TV.mean()).sum(dtype=np.float64))
    found.logits += difference.size
    if theirs == ids:
        found.nats += float(_nats(logits_TV, ids, eos_id).sum())
    elif theirs and max(theirs) < backend.vocab_size:
        found.nats += float(_nats(backend.logits(theirs[:positions]), theirs, eos_id).sum())
    else:  # no ids, or some that the network has no row for
        found.nats = math.nan


def _nats(logits_TV: np.ndarray, ids: Sequence[int], eos_id: int) -> np.ndarray:
    """Return the losses (T,) of a document in nats: all ids after the first, and EOS."""
    targets = np.array([*ids[1:], eos_id])[: len(logits_TV)]
    shifted = logits_TV - logits_TV.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    return log_sum - shifted[np.arange(len(targets)), targets]


def in_words(own: Reference, backend: Backend, ids: list[int], theirs: list[int]) -> str:
    """Return how the ids of a text differ from those of training, in a sentence."""
    bos_id = own.config.bos_token_id
    if theirs == ids[1:]:
        return "BOS is missing: training put it in front of every document"
    if theirs == [bos_id, *ids]:
        return "BOS is doubled: it is put in front twice"
    if theirs and theirs[-1] == own.config.eos_token_id and theirs[:-1] == ids:
        return "EOS is put behind the text, so a prompt is taken for a finished document"
    where = next(i for i, (a, b) in enumerate(zip_longest(ids, theirs)) if a != b)
    ours, others = ids[where : where + SHOWN], theirs[where : where + SHOWN]
    before = own.decode(ids[max(0, where - SHOWN) : where])
    pieces, their_pieces = (
        "|".join(side.decode([token]) for token in part) for side, part in ((own, ours), (backend, others))
    )
    kind = "vocabulary" if pieces == their_pieces else "pre-tokenizer"
    cut = f"{pieces!r} became {their_pieces!r}"
    return f"the {kind} differs at token {where:,}, after {before!r}: {cut} (ids {ours} became {others})"


def _table(own: Reference, backends: Sequence[Backend], figures: Sequence[Figures]) -> list[str]:
    """Return the figures, a line a backend, and below each line why it is not the trained model."""
    ours = figures[0]
    lines = [
        f"{'':20}{'same ids':>10}{'logits off by':>22}{'bits a byte':>13}{'greedy text':>13}",
        f"{'':20}{'':>10}{'mean      largest':>22}{'':>13}{'the same':>13}",
        f"{own.name:20}{'':>10}{'':>22}{ours.own_bits_per_byte:13.4f}{ours.own_bits_without_eos:13.4f} without EOS",
    ]
    for backend, found in zip(backends, figures, strict=True):
        lines.append(
            f"{backend.name:20}{found.same_ids / found.documents:10.1%}{found.mean:12.5f}{found.largest:10.4f}"
            f"{found.bits_per_byte:13.4f}{f'{found.same_text} of {found.prompts}':>13}   {backend.path}"
        )
        reasons = found.verdict(backend.precision)
        lines += [f"    NOT the trained model: {reason}" for reason in reasons]
        if not reasons:
            lines.append(f"    is the trained model; {found.relative:.3%} of the logits' spread is rounding")
    return lines

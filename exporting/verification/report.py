"""`--verify`: choose the backends, run them, and print a table with one line a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from common.errors import UserError
from corpus.reader import parse_chunk, read_chunks, text_files
from exporting.verification.backends import Backend, LlamaCpp, OwnModel, Transformers
from exporting.verification.comparison import Figures, compare

SPARE = 2  # positions for a BOS too many, and EOS


def verify(
    reference: Path,
    targets: Sequence[Path],
    data: Path,
    *,
    most_documents: int,
    most_tokens: int,
    say: Callable[[str], object],
) -> bool:
    """Print how each folder or GGUF file compares with the trained model in `reference`; return whether all are it.

    At most `most_documents` documents of `data` are taken, of each at most `most_tokens` tokens.
    """
    own = OwnModel(reference)
    positions = min(own.config.max_position_embeddings, most_tokens + SPARE)
    backends = [_backend(path, own, positions) for path in targets]
    texts = [own.fit(text, positions - SPARE) for text in _documents(data, most_documents)]
    say(f"reference  {reference}, {len(texts):,} documents of {data}")
    step = max(1, len(texts) // 5)
    figures = compare(
        own,
        backends,
        texts,
        positions,
        lambda n: say(f"... {n:,} documents") if n % step == 0 and n < len(texts) else None,
    )
    for line in table(own, backends, figures):
        say(line)
    return not any(found.verdict(backend.precision) for backend, found in zip(backends, figures, strict=True))


def table(own: OwnModel, backends: Sequence[Backend], figures: Sequence[Figures]) -> list[str]:
    """Return the figures, a line a backend, and below each line why it is not the trained model."""
    ours = figures[0].own_bits_per_byte
    lines = [
        f"{'':20}{'same ids':>10}{'logits off by':>22}{'bits a byte':>13}{'greedy text':>13}",
        f"{'':20}{'':>10}{'mean      largest':>22}{'':>13}{'the same':>13}",
        f"{own.name:20}{'':>10}{'':>22}{ours:13.4f}",
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


def _backend(path: Path, own: OwnModel, positions: int) -> Backend:
    if path.is_dir():
        folder = path / "model" if (path / "model").is_dir() else path
        return Transformers(folder, own)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --verify folders of models and GGUF files")
    return LlamaCpp(path, own, positions)


def _documents(data: Path, most: int) -> list[str]:
    chunks = (chunk for file in text_files([data]) for chunk in read_chunks(file))
    texts = list(islice((text for chunk in chunks for text in parse_chunk(chunk).texts), most))
    if not texts:
        raise UserError(f'{data} has no text that could be read: write one {{"text": "..."}} on each line')
    return texts

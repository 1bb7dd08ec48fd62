"""What a small model knows of its language, in figures that need no labels: minimal pairs, and its use of context.

Training measures them at the end of a run, the diagnosis whenever it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.context_use import Bucket, measure_context
from evaluation.minimal_pairs import PAIRS, Encode, PairResult, make_pairs, measure_pairs
from evaluation.token_losses import Logits

MOST_DOCUMENTS, MOST_TOKENS = 400, 40_000  # whose bits a byte are measured
PAIR_CHARACTERS = 2000  # of a document that pairs are made from


@dataclass(frozen=True)
class LanguageFigures:
    """Pairs by kind and of all kinds ("all"); bits a byte by position in a document and by its length."""

    pairs: dict[str, PairResult]
    by_position: list[Bucket]
    by_length: list[Bucket]

    def as_object(self) -> dict[str, Any]:
        """Return what JSON holds of them."""
        return {
            "minimal_pairs": {kind: asdict(result) for kind, result in self.pairs.items()},
            "bits_per_byte_by_position": [asdict(bucket) for bucket in self.by_position],
            "bits_per_byte_by_length": [asdict(bucket) for bucket in self.by_length],
        }

    def scalars(self) -> dict[str, float]:
        """Return the figures by the names that TensorBoard shows them under."""
        found = {f"minimal_pairs/{kind}": result.share for kind, result in self.pairs.items()}
        for name, buckets in (("position", self.by_position), ("length", self.by_length)):
            found |= {f"bits_per_byte_by_{name}/from_{bucket.start}": bucket.bits_per_byte for bucket in buckets}
        return found


def measure_figures(
    documents: Sequence[Sequence[int]],
    logits: Logits,
    *,
    encode: Encode,
    decode: Callable[[Sequence[int]], str],
    start_id: int | None,
    vocab_size: int,
    longest: int,
    pairs: int = PAIRS,
) -> LanguageFigures:
    """Measure a model on held-out documents of ids without BOS and EOS.

    `start_id` stands before each text, a BOS or else an EOS; `longest` is how many tokens the model takes at once, and
    `pairs` how many of each kind are made. FloatingPointError if the model's output is not finite.
    """
    chosen, tokens = [], 0
    for document in documents[:MOST_DOCUMENTS]:
        if tokens >= MOST_TOKENS:
            break
        chosen.append(document)
        tokens += min(len(document), longest)
    texts = [decode(document)[:PAIR_CHARACTERS] for document in documents]
    made = make_pairs(texts, encode, start_id, count=pairs, longest=longest)
    by_position, by_length = measure_context(
        chosen, logits, decode, start_id=start_id, vocab_size=vocab_size, longest=longest
    )
    return LanguageFigures(measure_pairs(made, logits, vocab_size), by_position, by_length)

"""A text with near copies and loops in it, made of a clean one: what the study "cleaning" is trained on."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.race.heldout import read_texts

CLEAN, COPIES, LOOPS = 16e6, 8e6, 2e6  # bytes, and the document that passes them
_COPIED, _EXCHANGED = 150, 0.02  # documents, and the share of a copy's characters


def write_dirty_text(source: Path, target: Path) -> None:
    """Write to `target` (.jsonl.gz) documents of `source`, near copies of some, and repeated phrases, shuffled."""
    rng = random.Random(0)
    documents = list(read_texts(source))
    rng.shuffle(documents)
    remaining = iter(documents)
    clean = list(_until(CLEAN, lambda: next(remaining)))
    characters, popular = "".join(clean[:200]), rng.sample(clean, _COPIED)

    def copy() -> str:
        document = rng.choice(popular)
        return "".join(rng.choice(characters) if rng.random() < _EXCHANGED else old for old in document)

    def loop() -> str:
        phrase = rng.choice(clean)[: rng.randint(8, 60)]
        return phrase * (rng.randint(600, 2500) // len(phrase))

    dirty = [*clean, *_until(COPIES, copy), *_until(LOOPS, loop)]
    rng.shuffle(dirty)
    with gzip.open(target, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in dirty)


def _until(size: float, make: Callable[[], str]) -> Iterator[str]:
    """Yield documents until they have so many bytes."""
    while size > 0:
        document = make()
        size -= len(document.encode())
        yield document

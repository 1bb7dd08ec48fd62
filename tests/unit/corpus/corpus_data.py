"""Made-up documents for the tests."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from corpus import pipeline
from corpus.manifest import Manifest
from corpus.settings import PreparationSettings

WORDS = ["春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少", "疑是地上霜", "the", "cat", "sat", "12345"]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Different short documents."""
    rng = random.Random(seed)
    return [f"第{i}篇：" + "，".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "。" for i in range(count)]


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    """One {"text": ...} a line."""
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    return path


def fingerprint(inputs: list[Path], **settings: Any) -> str:
    """Return the fingerprint of inputs, with settings by name."""
    made = PreparationSettings(**settings)
    return made.fingerprint(made.files(inputs))


def prepare(
    inputs: list[Path], output: Path, *, workers: int | None = None, progress: Any = None, **settings: Any
) -> Manifest:
    """Prepare in silence, with settings by name."""
    return pipeline.prepare(inputs, output, PreparationSettings(**settings), workers=workers, progress=progress)

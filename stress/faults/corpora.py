"""The texts of the bench: sample stories, whole, copied and repeating themselves; technical documents and poems."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from sample_stories import write_sample_corpus

STORIES, HELD_OUT_STORIES = 8_000, 0.05  # the second a share of the first
VOCABULARY = 1_000
TEXT_VOCABULARY = 2_000  # of documents and poems, which have more characters than the stories
# "half of the data, twenty times": of the documents of so many characters every second one
UNIQUE_CHARACTERS, COPIES = 36_000, 20
SENTENCES, TIMES = 3, 6
OTHER_DOCUMENTS = 6_000  # of a text file: more is not read in some hundred steps


@dataclass(frozen=True)
class Texts:
    """Files of real text, each None where the bench must do with stories, and how many of those are written."""

    docs: Path | None = None
    poems: Path | None = None
    stories: int = STORIES


def prepared(name: str, folder: Path, texts: Texts) -> Path:
    """The prepared corpus `name`, made under `folder` if it is not there yet.

    Names: stories, village, docs, poems, and each of them with _copied or _repeating behind.
    """
    output = folder / name
    if (output / "manifest.json").is_file():
        return output
    base, _, form = name.partition("_")
    train, held_out = _documents(base, folder, texts)
    if form == "copied":
        train = copied(_as_many(train, UNIQUE_CHARACTERS))
    elif form == "repeating":
        train, held_out = [repeating(text) for text in train], [repeating(text) for text in held_out]
    elif form:
        raise ValueError(f"no corpus is called {name}")
    tokenizer = prepared(base, folder, texts) / "tokenizer.json" if form else None
    files = _write(folder / f"{name}.jsonl", train), _write(folder / f"{name}.val.jsonl", held_out)
    vocabulary = VOCABULARY if base in ("stories", "village") else TEXT_VOCABULARY
    settings = PreparationSettings(
        val_inputs=[files[1]], tokenizer=tokenizer, dedup="none", repetition="keep", vocab_size=vocabulary
    )
    prepare([files[0]], output, settings, workers=1, progress=None)
    return output


def copied(documents: list[str]) -> list[str]:
    """Every second document COPIES times, in a shuffled order."""
    many = [text for place, text in enumerate(documents) for _ in range(COPIES if place % 2 else 1)]
    random.Random(0).shuffle(many)
    return many


def _as_many(documents: list[str], characters: int) -> list[str]:
    ends = itertools.accumulate(map(len, documents))
    return [text for text, end in zip(documents, ends, strict=True) if end <= characters]


def repeating(text: str) -> str:
    """The first SENTENCES sentences of a document, each TIMES over."""
    sentences = [part for part in re.split(r"(?<=[。！？\n])", text) if part.strip()][:SENTENCES]
    return "".join(part * TIMES for part in sentences)


def _documents(base: str, folder: Path, texts: Texts) -> tuple[list[str], list[str]]:
    """(training, held-out) documents."""
    source = {"docs": texts.docs, "poems": texts.poems}.get(base)
    if source is not None:
        documents = _read(source)
        random.Random(0).shuffle(documents)
        held_out = max(50, len(documents) // 50)
        return documents[held_out : held_out + OTHER_DOCUMENTS], documents[:held_out][:1_000]
    path = folder / f"{base}.all.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    held_out = int(texts.stories * HELD_OUT_STORIES)
    write_sample_corpus(path, texts.stories + held_out, hamlet=base == "stories")
    documents = list(dict.fromkeys(_read(path)))
    return documents[held_out:], documents[:held_out]


def _read(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _write(path: Path, documents: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents), encoding="utf-8"
    )
    return path

"""manifest.json: what a prepared folder holds, with the hashes that prove it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from common.errors import UserError
from common.files import printable, read_json
from common.records import MOST, AnyRecord, Count, Number, Record, parse_record
from corpus.formats.detect import TextFile
from corpus.ngram_baselines import NGramBaselines
from corpus.settings import FORMAT

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
REPORT_NAME = "report.json"
BYTES_PER_TOKEN = 2  # uint16, little-endian
MOST_FILES_LISTED = 1000
MOST_BYTES = 16 * 2**20  # of the file: 100,000 shards have not so many

# Names of files, which need not be UTF-8: what cannot be printed is spelled out.
Shown = Annotated[str, BeforeValidator(lambda value: printable(value, 5000) if isinstance(value, str) else value)]


def shard_name(split: str, number: int) -> str:
    """Return the file name of the shard `number` (from 0) of "train" or "val"."""
    return f"{split}-{number:05}.bin"


def mask_name(shard: str) -> str:
    """Return the file name of the mask of a shard."""
    return shard.removesuffix(".bin") + ".mask"


class ShardInfo(Record):
    """One file of packed ids."""

    file: str
    tokens: Annotated[int, Field(gt=0, le=MOST)]
    sha256: str


class AnswerInfo(Record):
    """What counts in the loss of a corpus with conversations; `masks` are the SHA-256 of the shards' masks.

    `targets` are ids that count: answers with the marks that end them, and plain texts. `target_bytes` is their text.
    """

    conversations: Count
    turns: Count
    targets: Count
    target_bytes: Count
    masks: list[str]


class SplitInfo(Record):
    """One side of the corpus; `bytes` and `characters` are those of the texts, `tokens` includes BOS and EOS.

    `answers` is None, and stands nowhere, without conversations: then every id is a target.
    """

    documents: Count
    bytes: Count
    characters: Count
    tokens: Count
    characters_per_token: Number
    shards: list[ShardInfo]
    answers: AnswerInfo | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def bytes_per_target(self) -> float:
        """Return what turns nats a target into bits a byte; nan without any."""
        size, count = (self.answers.target_bytes, self.answers.targets) if self.answers else (self.bytes, self.tokens)
        return size / count if count else math.nan


class InputInfo(Record):
    """A file that was read."""

    file: Shown
    side: str
    bytes: Count


class SourceInfo(Record):
    """A source of a mixture: its share of the training rows, and the training text that it has."""

    name: Shown
    weight: Annotated[float, Field(gt=0, le=1)]
    documents: Count
    bytes: Count
    tokens: Count


class Manifest(Record):
    """All that is known about a prepared folder.

    `skipped` counts lines left out, by reason; `bad_lines` names the first hundred of them. `exact_duplicates` are
    documents that repeat an earlier one (dropped unless `settings["dedup"]` is "none"); `dropped_in_val` are training
    documents left out because the validation files hold them too. `entropy_nats` is the entropy of the frequencies
    of the training tokens: the loss, in nats a token, of a model that knows no context. `ngram_baselines` is None
    where there is no validation text. `sources` are those of a mixture, in the order of the shards.
    """

    format: Literal[2]
    fingerprint: str
    settings: dict[str, Any]
    inputs: list[InputInfo]
    vocab_size: Annotated[int, Field(ge=1, le=2 ** (8 * BYTES_PER_TOKEN))]
    # The second names are those in folders that were prepared before 2026-11-29.
    bos_id: Count = Field(validation_alias=AliasChoices("bos_id", "begin_id"))
    eos_id: Count = Field(validation_alias=AliasChoices("eos_id", "end_id"))
    pad_id: Count
    tokenizer_sha256: str
    tokenizer_source: Shown
    entropy_nats: Number
    ngram_baselines: NGramBaselines | None = Field(validation_alias=AliasChoices("ngram_baselines", "ladder"))
    exact_duplicates: Count
    dropped_in_val: Count
    skipped: dict[str, Count]
    bad_lines: list[Shown]
    splits: dict[str, SplitInfo]
    sources: list[SourceInfo] | None = Field(default=None, exclude_if=lambda value: value is None)

    @field_validator("format", mode="before")
    @classmethod
    def _check_format(cls, value: Any) -> Any:
        if value != FORMAT:
            raise ValueError(f"made by another version of prepare.py, {printable(repr(value), 20)} and not {FORMAT}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if not isinstance(self.settings.get("dedup"), str):
            raise ValueError("settings.dedup is missing")
        for name in ("bos_id", "eos_id", "pad_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(f"{name} is {getattr(self, name)}, beyond the {self.vocab_size} entries")
        if set(self.splits) != {"train", "val"}:
            raise ValueError("the splits are not train and val")
        if self.sources and sum(source.tokens for source in self.sources) != self.splits["train"].tokens:
            raise ValueError("the tokens of the sources do not add up to those of train")
        for name, split in self.splits.items():
            for number, shard in enumerate(split.shards):
                # Never a path: a manifest may come from anywhere, and must not lead out of its folder.
                if shard.file != (expected := shard_name(name, number)):
                    raise ValueError(f"shard {printable(shard.file, 60)!r} instead of {expected!r}")
            if sum(shard.tokens for shard in split.shards) != split.tokens:
                raise ValueError(f"the shards of {name} do not add up to its {split.tokens} tokens")
            if split.answers and len(split.answers.masks) != len(split.shards):
                raise ValueError(f"{name} has not one mask for each shard")
        if len({split.answers is None for split in self.splits.values()}) > 1:
            raise ValueError("only one of the splits has masks")
        return self

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json, readable and the same for the same corpus."""
        text = json.dumps(self.model_dump(), ensure_ascii=False, indent=2)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `folder`/manifest.json; UserError if it is missing, broken or points outside the folder."""
        return read_record(cls, folder, MANIFEST_NAME, "make the folder with prepare.py")


def input_infos(files: Sequence[TextFile], side: str) -> list[InputInfo]:
    """Return what the manifest says of the files of one side: of many, their folders only."""
    paths = list(dict.fromkeys(file.path for file in files if file.side == side))
    if len(paths) <= MOST_FILES_LISTED:
        return [InputInfo(file=path.name, side=side, bytes=path.stat().st_size) for path in paths]
    folders: dict[Path, list[int]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path.stat().st_size)
    return [
        InputInfo(file=f"{folder.name}/ ({len(sizes):,} files)", side=side, bytes=sum(sizes))
        for folder, sizes in folders.items()
    ]


def source_infos(
    files: Sequence[TextFile], weights: Sequence[float], counts: Mapping[int, Counter[str]]
) -> list[SourceInfo]:
    """Return what the manifest says of the sources of a mixture, given what train has of each."""
    found = []
    for source, weight in enumerate(weights):
        paths = [file.path for file in files if file.source == source]
        name = paths[0].name if len(paths) == 1 else f"{paths[0].parent.name}/"
        figures = {key: counts[source][key] for key in ("documents", "bytes", "tokens")}
        found.append(SourceInfo(name=name, weight=weight, **figures))
    return found


def read_record(kind: type[AnyRecord], folder: Path, name: str, hint: str = "prepare the corpus again") -> AnyRecord:
    """Return what a JSON file of a prepared folder holds; UserError otherwise, with `hint` if it is missing."""
    path = folder / name
    try:
        value = read_json(path, MOST_BYTES)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {name} here; {hint}") from None
    except (OSError, ValueError) as error:
        why = printable((error.strerror if isinstance(error, OSError) else None) or error)
        raise UserError(f"{path}: cannot be read ({why}); prepare the corpus again") from None
    try:
        return parse_record(kind, value)
    except ValueError as error:
        what = f"not a {path.stem} of this version"
        raise UserError(f"{path}: {what} ({error}); prepare the corpus again") from None

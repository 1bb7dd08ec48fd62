"""manifest.json: what a prepared folder holds, with the hashes that prove it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UserError
from .ladder import Ladder

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
REPORT_NAME = "report.json"
# Raised whenever the layout of the shards or of this file changes: older folders are then refused, not misread.
FORMAT = 2
BYTES_PER_TOKEN = 2  # uint16, little-endian


@dataclass(frozen=True)
class ShardInfo:
    """One file of packed ids."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One side of the corpus; `bytes` and `characters` are those of the texts, `tokens` includes the marks."""

    documents: int
    bytes: int
    characters: int
    tokens: int
    characters_per_token: float
    shards: list[ShardInfo]


@dataclass(frozen=True)
class Manifest:
    """All that is known about a prepared folder.

    `skipped` counts lines left out, by reason; `bad_lines` names the first hundred of them. `exact_duplicates` are
    documents that repeat an earlier one (dropped unless `settings["dedup"]` is "none"); `dropped_in_val` are training
    documents left out because the validation files hold them too. `entropy_nats` is the entropy of the frequencies
    of the training tokens: the loss, in nats a token, of a model that knows no context. `ladder` holds the fields of
    `ladder.Ladder`, the losses of small models on the validation text; None where there is no such text.
    """

    format: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    vocab_size: int
    begin_id: int
    end_id: int
    pad_id: int
    tokenizer_sha256: str
    tokenizer_source: str
    entropy_nats: float
    ladder: dict[str, Any] | None
    exact_duplicates: int
    dropped_in_val: int
    skipped: dict[str, int]
    bad_lines: list[str]
    splits: dict[str, SplitInfo]

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json, readable and the same for the same corpus."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `folder`/manifest.json; UserError if it is missing, broken or points outside the folder."""
        path = folder / MANIFEST_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder}: no {MANIFEST_NAME} here; make the folder with prepare.py") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the corpus again") from None
        try:
            manifest = cls._from_json(data)
        except UserError as error:
            raise UserError(f"{path}: {error}; prepare the corpus again") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a manifest of this version ({error}); prepare the corpus again") from None
        return manifest

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Manifest:
        if data["format"] != FORMAT:
            raise UserError(f"made by another version of prepare.py (format {data['format']!r}, here {FORMAT})")
        splits = {name: _split_from_json(name, split) for name, split in data["splits"].items()}
        if set(splits) != {"train", "val"}:
            raise ValueError(f"splits {sorted(splits)} instead of train and val")
        plain = {field.name: data[field.name] for field in fields(cls) if field.name != "splits"}
        if plain["ladder"] is not None:
            Ladder(**plain["ladder"]).check()
        for key in ("vocab_size", "begin_id", "end_id", "pad_id"):
            _count(plain[key], key)
        return cls(**plain, splits=splits)


def _split_from_json(name: str, data: dict[str, Any]) -> SplitInfo:
    shards = [ShardInfo(**shard) for shard in data["shards"]]
    for shard in shards:
        _check_inside(shard.file)
        _count(shard.tokens, f"tokens of {shard.file}")
    split = SplitInfo(**{**data, "shards": shards})
    if sum(shard.tokens for shard in shards) != split.tokens:
        raise ValueError(f"the shards of {name} do not add up to its {split.tokens} tokens")
    return split


def _check_inside(file: str) -> None:
    """A manifest may come from anywhere, so a shard must be a bare file name: nothing that can leave the folder."""
    if file in ("", ".", "..") or any(mark in file for mark in "/\\:\0"):
        raise ValueError(f"shard {file!r} is not a plain file name")


def _count(value: object, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}, not a count")

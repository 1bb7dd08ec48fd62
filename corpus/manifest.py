"""manifest.json: what a prepared folder holds, with the hashes that prove it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import printable, read_text
from corpus.ngram_baselines import NGramBaselines

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
REPORT_NAME = "report.json"
# Raised whenever the layout of the shards or of this file changes: older folders are then refused, not misread.
FORMAT = 2
BYTES_PER_TOKEN = 2  # uint16, little-endian
MOST_BYTES = 16 * 2**20  # of the file: 100,000 shards have not so many
MOST_TOKENIZER_BYTES = 64 * 2**20  # 65,536 entries and their merges take a tenth of it
_MOST = 2**53  # of a count: no corpus is so large, and a float still counts in ones


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
    `ladder.NGramBaselines`, the losses of small models on the validation text; None where there is no such text.
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
        # Names of files that are not UTF-8 hold half surrogate pairs, which become JSON's own escapes here.
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `folder`/manifest.json; UserError if it is missing, broken or points outside the folder."""
        path = folder / MANIFEST_NAME
        try:
            data = json.loads(read_text(path, MOST_BYTES))
        except FileNotFoundError:
            raise UserError(f"{folder}: no {MANIFEST_NAME} here; make the folder with prepare.py") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the corpus again") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({printable(error)}); prepare the corpus again") from None
        try:
            manifest = cls._from_json(data)
        except UserError as error:
            raise UserError(f"{path}: {error}; prepare the corpus again") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = printable(error)
            raise UserError(f"{path}: not a manifest of this version ({why}); prepare the corpus again") from None
        return manifest

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Manifest:
        if data["format"] != FORMAT:
            found = printable(repr(data["format"]), 20)
            raise UserError(f"made by another version of prepare.py (format {found}, here {FORMAT})")
        plain = {field.name: data[field.name] for field in fields(cls) if field.name != "splits"}
        for key, check in _CHECKS.items():
            check(plain[key], key)
        if plain["ladder"] is not None:
            _check_ladder(plain["ladder"])
        if not 1 <= plain["vocab_size"] <= 2 ** (8 * BYTES_PER_TOKEN):
            raise ValueError(f"vocab_size is {plain['vocab_size']}, which ids of {BYTES_PER_TOKEN} bytes cannot have")
        for key in ("begin_id", "end_id", "pad_id"):
            if plain[key] >= plain["vocab_size"]:
                raise ValueError(f"{key} is {plain[key]}, beyond the {plain['vocab_size']} entries")
        if set(data["splits"]) != {"train", "val"}:
            raise ValueError(f"splits {sorted(data['splits'])} instead of train and val")
        return cls(**plain, splits={name: _split_from_json(name, split) for name, split in data["splits"].items()})


def _split_from_json(name: str, data: dict[str, Any]) -> SplitInfo:
    for key in ("documents", "bytes", "characters", "tokens"):
        _count(data[key], f"{key} of {name}")
    _number(data["characters_per_token"], f"characters_per_token of {name}")
    shards = [ShardInfo(**shard) for shard in data["shards"]]
    for number, shard in enumerate(shards):
        # Never a path: a manifest may come from anywhere, and must not lead out of its folder.
        if shard.file != shard_name(name, number):
            raise ValueError(f"shard {printable(shard.file, 60)!r} instead of {shard_name(name, number)!r}")
        _count(shard.tokens, f"tokens of {shard.file}")
        _text(shard.sha256, f"sha256 of {shard.file}")
        if shard.tokens == 0:
            raise ValueError(f"tokens of {shard.file} is 0")
    split = SplitInfo(**{**data, "shards": shards})
    if sum(shard.tokens for shard in shards) != split.tokens:
        raise ValueError(f"the shards of {name} do not add up to its {split.tokens} tokens")
    return split


def shard_name(split: str, number: int) -> str:
    """The file name of the shard `number` (from 0) of "train" or "val"."""
    return f"{split}-{number:05}.bin"


def _check_ladder(data: dict[str, Any]) -> None:
    for key, value in data.items():
        _number(value, f"{key} of the ladder")
    NGramBaselines(**data).check()


def _count(value: object, name: str) -> None:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{name} is {printable(repr(value), 40)}, not a count")


def _number(value: object, name: str) -> None:
    if type(value) not in (int, float) or not 0 <= value <= _MOST:
        raise ValueError(f"{name} is {printable(repr(value), 40)}, not a number of at least 0")


def _text(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {printable(repr(value), 40)}, not a text")


def _counts(value: object, name: str) -> None:
    for key, count in _block(value, name).items():
        _count(count, f"{key} of {name}")


def _block(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {printable(repr(value), 40)}, not a block")
    return value


def _settings(value: object, name: str) -> None:
    _text(_block(value, name)["dedup"], f"dedup of {name}")


def _list(value: object, name: str) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {printable(repr(value), 40)}, not a list")


_CHECKS: dict[str, Callable[[object, str], object]] = {
    "fingerprint": _text,
    "settings": _settings,
    "inputs": _list,
    "vocab_size": _count,
    "begin_id": _count,
    "end_id": _count,
    "pad_id": _count,
    "tokenizer_sha256": _text,
    "tokenizer_source": _text,
    "entropy_nats": _number,
    "exact_duplicates": _count,
    "dropped_in_val": _count,
    "skipped": _counts,
    "bad_lines": _list,
}

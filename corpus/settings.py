"""The settings of a preparation, declared once, and the fingerprint by which a prepared folder is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.files import sha256_file
from corpus.formats.detect import BOTH_FIELDS, FormatSettings, TextFile
from corpus.reader import text_files
from corpus.tokenizer import MAX_ENTRIES, MIN_ENTRIES, tokenizer_file

DEDUP_CHOICES = ("none", "exact", "near")
REPETITION_CHOICES = ("drop", "keep")
# Raised whenever the layout of the shards or of manifest.json changes: older folders are then refused, not misread.
FORMAT = 2
OPTIONAL = ("text_key", "text_template", "split_txt", "weights")


@dataclass(frozen=True)
class PreparationSettings:
    """What decides, together with the text, what a prepared folder holds; the flags of prepare.py say it in words."""

    tokenizer: Path | None = None
    vocab_size: int = 6400
    dedup: str = "exact"
    repetition: str = "drop"
    val_fraction: float = 0.005
    val_inputs: Sequence[Path] = ()
    max_bad_share: float = 0.01
    shard_tokens: int = 2**26  # 128 MB a shard
    text_key: str | None = None
    text_template: str | None = None
    split_txt: bool = False
    weights: Sequence[float] = ()
    """The shares of the inputs in the training rows; none if it is no mixture."""

    def __post_init__(self) -> None:
        """Take the tokenizer.json of a folder for the folder."""
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", tokenizer_file(self.tokenizer))

    def problems(self) -> list[str]:
        """Return one sentence for each value that is out of its range."""
        size_is_idle = self.tokenizer is not None
        rules = {
            "dedup": (self.dedup in DEDUP_CHOICES, "none, exact or near"),
            "repetition": (self.repetition in REPETITION_CHOICES, "drop or keep"),
            "vocab_size": (
                size_is_idle or MIN_ENTRIES <= self.vocab_size <= MAX_ENTRIES,
                f"from {MIN_ENTRIES:,} to {MAX_ENTRIES:,}",
            ),
            "val_fraction": (0 <= self.val_fraction < 1, "at least 0 and below 1"),
            "max_bad_share": (0 <= self.max_bad_share <= 1, "from 0 to 1"),
            "shard_tokens": (self.shard_tokens >= 1, "at least 1"),
        }
        problems = [] if self.text_key is None or self.text_template is None else [BOTH_FIELDS]
        problems += [
            f"--{name} {getattr(self, name)}: must be {rule}" for name, (holds, rule) in rules.items() if not holds
        ]
        return problems

    @property
    def format(self) -> FormatSettings:
        """Return what decides how files are read."""
        return FormatSettings(self.text_key, self.text_template, self.split_txt)

    def recorded(self) -> dict[str, Any]:
        """Return the settings that are no files, by name, as manifest.json has them.

        A value that a given file makes idle is blanked, so that settings that mean the same are the same; those of
        formats and mixtures are there only if they are given, as in folders that were made before there were any.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokenizer", "val_inputs")}
        values = {name: value for name, value in values.items() if value or name not in OPTIONAL}
        if self.tokenizer:
            values["vocab_size"] = None
        if self.val_inputs:
            values["val_fraction"] = 0.0
        if "weights" in values:
            values["weights"] = list(self.weights)
        return dict(sorted(values.items()))


def fingerprint(inputs: Sequence[Path], settings: PreparationSettings) -> str:
    """Return the SHA-256 over the content of the inputs, in their order, and everything in the settings.

    Files count by content and by how they are read, so that a moved file keeps its fingerprint. UserError if a file
    cannot be read.
    """
    return fingerprint_of(
        text_files(inputs, settings.format), text_files(settings.val_inputs, settings.format), settings
    )


def fingerprint_of(files: Sequence[TextFile], val_files: Sequence[TextFile], settings: PreparationSettings) -> str:
    """Return the fingerprint of files whose formats are known."""
    content = {
        **settings.recorded(),
        "format": FORMAT,
        "inputs": _contents(files),
        "tokenizer": sha256_file(settings.tokenizer) if settings.tokenizer else None,
        "val_inputs": _contents(val_files),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _contents(files: Sequence[TextFile]) -> list[str | list[str | None]]:
    """Return the SHA-256 of every file; what is no plain JSON Lines comes with how it is read."""
    digests = {path: sha256_file(path) for path in dict.fromkeys(file.path for file in files)}
    return [
        [digests[file.path], file.member, file.reading] if file.reading or file.member else digests[file.path]
        for file in files
    ]

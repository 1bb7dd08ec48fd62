"""The settings of a preparation, declared once, and the fingerprint by which a prepared folder is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.files import sha256_file
from corpus.formats.detect import TextFile
from corpus.formats.fields import TextFields, parse_template
from corpus.reader import text_files
from corpus.tokenizer import MAX_ENTRIES, MIN_ENTRIES, tokenizer_file

DEDUP_CHOICES = ("none", "exact", "near")
REPETITION_CHOICES = ("drop", "keep")
# Raised whenever the layout of the shards or of manifest.json changes: older folders are then refused, not misread.
FORMAT = 2
# Text to train a tokenizer on: 32 MB for 6,400 entries, which settles their merges in about a minute; training takes
# time in proportion to the text, and would otherwise cost as much as packing the whole corpus.
SAMPLE_BYTES_PER_ENTRY = 5_000
MAX_SAMPLE_BYTES = 100 * 10**6


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
        any_size = self.tokenizer is not None
        rules = {
            "dedup": (self.dedup in DEDUP_CHOICES, "none, exact or near"),
            "repetition": (self.repetition in REPETITION_CHOICES, "drop or keep"),
            "vocab_size": (
                any_size or MIN_ENTRIES <= self.vocab_size <= MAX_ENTRIES,
                f"from {MIN_ENTRIES:,} to {MAX_ENTRIES:,}",
            ),
            "val_fraction": (0 <= self.val_fraction < 1, "at least 0 and below 1"),
            "max_bad_share": (0 <= self.max_bad_share <= 1, "from 0 to 1"),
            "shard_tokens": (self.shard_tokens >= 1, "at least 1"),
        }
        found = [
            f"--{name} {getattr(self, name)}: must be {rule}" for name, (holds, rule) in rules.items() if not holds
        ]
        if self.text_key is not None and self.text_template is not None:
            found.append("--text_key and --text_template exclude each other; give one of them")
        return found

    @property
    def held_out_share(self) -> float:
        """The share of the documents of the inputs that validation gets."""
        return 0.0 if self.val_inputs else self.val_fraction

    @property
    def sample_bytes(self) -> int:
        """The bytes of text that a tokenizer is trained on."""
        return 0 if self.tokenizer else min(MAX_SAMPLE_BYTES, SAMPLE_BYTES_PER_ENTRY * self.vocab_size)

    def files(self, inputs: Sequence[Path]) -> list[TextFile]:
        """Return the files to read, those of validation first; UserError names all that cannot be read."""
        given = TextFields(self.text_key) if self.text_key is not None else None
        if self.text_template is not None:
            given = TextFields(template=parse_template(self.text_template))
        return text_files(inputs, self.val_inputs, given, self.split_txt)

    def recorded(self) -> dict[str, Any]:
        """Return the settings that are no files, by name, as manifest.json has them.

        A value that a given file makes idle is blanked, so that settings that mean the same are the same; those of
        formats and mixtures are there only if they are given, as in folders that were made before there were any.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokenizer", "val_inputs")}
        values |= {"vocab_size": None if self.tokenizer else self.vocab_size, "val_fraction": self.held_out_share}
        optional = {name: values.pop(name) for name in ("text_key", "text_template", "split_txt")}
        optional["weights"] = list(values.pop("weights"))
        return dict(sorted((values | {name: value for name, value in optional.items() if value}).items()))

    def fingerprint(self, files: Sequence[TextFile]) -> str:
        """Return the SHA-256 over the content of the files, in their order, and everything in the settings.

        Files count by content and by how they are read, so that a moved file keeps its fingerprint. UserError if a
        file cannot be read.
        """
        digests = {path: sha256_file(path) for path in dict.fromkeys(file.path for file in files)}
        contents: dict[str, list[Any]] = {"train": [], "val": []}
        for file in files:
            plain = not (file.reading or file.member)
            content = digests[file.path] if plain else [digests[file.path], file.member, file.reading]
            contents[file.side].append(content)
        content = {
            **self.recorded(),
            "format": FORMAT,
            "inputs": contents["train"],
            "tokenizer": sha256_file(self.tokenizer) if self.tokenizer else None,
            "val_inputs": contents["val"],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

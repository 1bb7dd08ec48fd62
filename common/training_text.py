"""training_text.json: what the text of a model had, kept beside its tokenizer for those who prompt it."""

from __future__ import annotations

import json
from pathlib import Path

from common.files import read_json
from common.records import Count, Record, parse_record

FILE_NAME = "training_text.json"
_MOST_BYTES = 16 * 2**20


class TrainingText(Record):
    """`characters` are all that occur, in order; `unused_tokens` the entries of the vocabulary that never do.

    BOS, EOS and padding do not count.
    """

    characters: str
    unused_tokens: list[Count]

    def unknown(self, text: str) -> str:
        """Return the characters of a text, each once, that the training text never had; white space does not count."""
        known = frozenset(self.characters)
        return "".join(c for c in dict.fromkeys(text) if c not in known and not c.isspace())

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        text = json.dumps(self.model_dump(), ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainingText | None:
        """Return what a folder says; None if it was made before or by others, or is damaged: a help, no need."""
        try:
            return parse_record(cls, read_json(folder / FILE_NAME, _MOST_BYTES))
        except (OSError, ValueError):
            return None

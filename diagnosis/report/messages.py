"""The texts of a report and its page, in English and Chinese: locales/en.json and locales/zh.json.

A text is named by its place in the file ("causes.duplicates.title"), and its values are filled in by str.format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).with_name("locales")
LANGUAGES = ("en", "zh")


class Messages:
    """The texts of one language: `messages("notes.seen")`. An unknown language gives English."""

    def __init__(self, language: str, locales: Path = LOCALES) -> None:
        self.language = language if language in LANGUAGES else LANGUAGES[0]
        self.texts = load_texts(self.language, locales)

    def __call__(self, key: str, **values: Any) -> str:
        """Return the text `key` with its values."""
        return self.texts[key].format(**values)

    def section(self, name: str) -> dict[str, str]:
        """Return the texts of one section, by their names in it."""
        return {key.removeprefix(f"{name}."): text for key, text in self.texts.items() if key.startswith(f"{name}.")}


@cache
def load_texts(language: str, locales: Path = LOCALES) -> dict[str, str]:
    """Return all texts of a language by their dotted names, from the folder of one file a language."""
    return dict(_flatten(json.loads((locales / f"{language}.json").read_text(encoding="utf-8")), ""))


def _flatten(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

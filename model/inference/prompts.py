"""Prompts: read from plain text with one a line or from JSON Lines, and turned into tokens that the model knows.

A vocabulary has entries that its training text never needed: "有一天" where "有一天早上" is an entry of its own and
nothing else follows. The model has learned nothing about such a token. At the end of a prompt it is held back with what
belongs to it, and the first new token must begin with its text (token healing); elsewhere it is split into what it was
merged from.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from common.errors import UserError
from common.training_text import TrainingText

MOST_HELD_BACK = 8  # tokens


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it came from, for messages."""

    text: str
    source: str


def read_prompts(path: Path | None) -> list[Prompt]:
    """Return the prompts of a file, or of standard input; raise UserError if there is none or one is broken."""
    source = str(path) if path else "standard input"
    if path is None and sys.stdin is None:
        raise UserError("nothing to read prompts from: give --prompt TEXT or --prompts FILE")
    try:
        data = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): give --prompts a file of prompts") from None
    read = _read_json if source.endswith(".jsonl") else _read_text
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    prompts = [
        Prompt(read(line, f"{source}:{number}"), f"{source}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{source} holds no prompt: write one a line")
    return prompts


def _read_text(line: bytes, source: str) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8: convert the text, with iconv for instance") from None


def _read_json(line: bytes, source: str) -> str:
    try:
        record = json.loads(_read_text(line, source))
    except (ValueError, RecursionError):
        raise UserError(f'{source} is broken JSON: write an object a line, such as {{"prompt": "从前"}}') from None
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{source} has no text under "prompt" or "text"')
    return text


@dataclass(frozen=True)
class PromptTokens:
    """`ids` of a prompt; if the end of its text is `held` back, the first new token must be one of `first`."""

    ids: list[int]
    held: str = ""
    first: tuple[int, ...] = ()


class PromptEncoder:
    """Encodes prompts for a model that was trained on `text`; without knowing it, as the tokenizer does."""

    def __init__(self, tokenizer: Tokenizer, text: TrainingText | None) -> None:
        self.tokenizer = tokenizer
        self._unused = frozenset(text.unused_tokens if text else ())
        self._text = text
        model = json.loads(tokenizer.to_str())["model"] if self._unused else {}
        self._parts = {left + right: (left, right) for left, right in map(_pair, reversed(model.get("merges", [])))}
        self._entries = tokenizer.get_vocab(with_added_tokens=False) if self._unused else {}

    def unknown_characters(self, text: str) -> str:
        """Return the characters of a text that the training text never had, each once."""
        return self._text.unknown(text) if self._text else ""

    def encode(self, text: str) -> PromptTokens:
        """Return the tokens of a prompt, without BOS."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        count, held, first = self._hold_back(ids)
        kept = ids[: len(ids) - count]
        return PromptTokens([part for i in kept for part in self._used_parts(i)], held, first)

    def encode_behind(self, bos_id: int, text: str) -> PromptTokens:
        """Return the tokens of a prompt behind BOS, unless its text begins with that."""
        tokens = self.encode(text)
        return tokens if tokens.ids[:1] == [bos_id] else replace(tokens, ids=[bos_id, *tokens.ids])

    def _hold_back(self, ids: list[int]) -> tuple[int, str, tuple[int, ...]]:
        """Return how many tokens at the end wait for a longer one, their text, and the tokens that begin with it.

        As many as there is a longer entry for, if one of them is unused.
        """
        for count in range(min(len(ids), MOST_HELD_BACK), 0, -1):
            last = ids[-count:]
            if self._unused.isdisjoint(last):
                break
            name = "".join(str(self.tokenizer.id_to_token(i)) for i in last)
            longer = (i for entry, i in self._entries.items() if entry.startswith(name) and i not in self._unused)
            text = self.tokenizer.decode(last, skip_special_tokens=False)
            if "\ufffd" not in text and (first := tuple(sorted(longer))):
                return count, text, first
        return 0, "", ()

    def _used_parts(self, token: int) -> list[int]:
        """Return the token if it is used, and else what it was merged from, as far as that can be taken apart."""
        waiting, found = [str(self.tokenizer.id_to_token(token))], []
        while waiting:
            name = waiting.pop()
            number = self._entries.get(name, token)
            if number in self._unused and name in self._parts:
                waiting += reversed(self._parts[name])
            else:
                found.append(number)
        return found


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right

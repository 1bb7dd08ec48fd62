"""A prompt's tokens: only such as the model was trained on, and what the next one must begin with.

A vocabulary has entries that its training text never needed: "有一天" where "有一天早上" is an entry of its own and
nothing else follows. The model has learned nothing about such a token. At the end of a prompt it is held back with what
belongs to it, and the first new token must begin with its text (token healing); elsewhere it is split into what it was
merged from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenizers import Tokenizer

from common.training_text import TrainingText

MOST_HELD_BACK = 8  # tokens


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
        self._characters = frozenset(text.characters) if text else None
        model = json.loads(tokenizer.to_str())["model"] if self._unused else {}
        self._parts = {left + right: (left, right) for left, right in map(_pair, reversed(model.get("merges", [])))}
        self._entries = tokenizer.get_vocab(with_added_tokens=False) if self._unused else {}

    def unknown_characters(self, text: str) -> str:
        """Return the characters of a text that the training text never had, each once."""
        known = self._characters
        return "" if known is None else "".join(c for c in dict.fromkeys(text) if c not in known and not c.isspace())

    def encode(self, text: str) -> PromptTokens:
        """Return the tokens of a prompt, without BOS."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        count, held, first = self._hold_back(ids)
        kept = ids[: len(ids) - count]
        return PromptTokens([part for i in kept for part in self._used_parts(i)], held, first)

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

"""Conversations to token ids, and which of these are targets: the assistant's words and the mark that ends them.

The ids are those of the chat template (common/chat_template.py), without the line break after the last turn: EOS and
the next document's BOS then stand side by side, as between all documents, and inside a conversation they never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from common.errors import UserError
from corpus.conversations.records import ASSISTANT, ROLES, Conversation, Turn
from corpus.encoding import LENGTH_TYPE, encode_texts
from corpus.tokenizer import special_ids


class ConversationEncoder:
    """A tokenizer with the chat template on its own BOS and EOS."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos_id, self.eos_id, _ = special_ids(tokenizer)
        added = tokenizer.get_added_tokens_decoder().items()
        marks = {token.content for number, token in added if token.special or number in (self.bos_id, self.eos_id)}
        self._marks = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))) if marks else None
        self._headers = {role: self._ids(f"{role}\n") for role in ROLES}
        self._line_break = self._ids("\n")

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, conversations: Sequence[Conversation]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield (ids, mask) of each conversation; the mask is 1 on targets."""
        return self.lay_out(conversations, *self.contents([turn.content for turns in conversations for turn in turns]))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids after which the assistant's next words come."""
        ids, _ = next(self.encode([tuple(turns)]))
        return [*ids, *(self._line_break if ids else ()), self.bos_id, *self._headers[ASSISTANT]]

    def contents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode as `encode_texts` does, but no id is a mark: what is written like one is encoded letter by letter."""
        pieces = [list(self._without_marks(text)) for text in texts]
        ids, lengths = encode_texts(self.tokenizer, [piece for parts in pieces for piece in parts])
        firsts = np.cumsum([0, *map(len, pieces)])[:-1]  # a text has at least one
        return ids, np.add.reduceat(lengths, firsts).astype(LENGTH_TYPE) if pieces else lengths

    def lay_out(
        self, conversations: Sequence[Conversation], ids: np.ndarray, lengths: np.ndarray
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yield (ids, mask) of each conversation, given the `contents` of all turns."""
        contents = iter(np.split(ids, np.cumsum(lengths)[:-1]))
        for turns in conversations:
            laid_out: list[int] = []
            mask: list[int] = []
            for turn in turns:
                before = [*(self._line_break if laid_out else ()), self.bos_id, *self._headers[turn.role]]
                words = [*next(contents).tolist(), self.eos_id]
                laid_out += before + words
                mask += [0] * len(before) + [int(turn.role == ASSISTANT)] * len(words)
            yield laid_out, mask

    def _without_marks(self, text: str) -> Iterator[str]:
        """Yield the text in pieces, cut behind the first character of everything that is written like a mark."""
        while match := self._marks and self._marks.search(text):
            if len(match.group()) < 2:
                raise UserError(
                    f"the tokenizer's mark {match.group()!r} is a single character, which any text may hold"
                )
            yield text[: match.start() + 1]
            text = text[match.start() + 1 :]
        yield text

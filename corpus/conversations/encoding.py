"""Conversations to token ids, and which of these are targets: the assistant's words and the mark that ends them.

The ids are those of the chat template (common/chat_template.py), without the line break after the last turn: EOS and
the next document's BOS then stand side by side, as between all documents, and inside a conversation they never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from common.errors import UserError
from corpus.conversations.records import ASSISTANT, ROLES, Conversation, Turn
from corpus.tokenizer import library_errors, special_ids

ENCODED_AT_ONCE = 64  # texts


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
        contents = iter(self._contents([turn.content for turns in conversations for turn in turns]))
        for turns in conversations:
            ids: list[int] = []
            mask: list[int] = []
            for turn in turns:
                before = [*(self._line_break if ids else ()), self.bos_id, *self._headers[turn.role]]
                words = [*next(contents), self.eos_id]
                ids += before + words
                mask += [0] * len(before) + [int(turn.role == ASSISTANT)] * len(words)
            yield ids, mask

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids after which the assistant's next words come."""
        ids, _ = next(self.encode([tuple(turns)]))
        return [*ids, *(self._line_break if ids else ()), self.bos_id, *self._headers[ASSISTANT]]

    def _contents(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, none of them a mark: what is written like one is encoded letter by letter."""
        pieces = [list(self._without_marks(text)) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        encode = getattr(self.tokenizer, "encode_batch_fast", self.tokenizer.encode_batch)
        found: list[list[int]] = []
        for start in range(0, len(flat), ENCODED_AT_ONCE):
            with library_errors("the tokenizer cannot encode the text; take another"):
                found += [e.ids for e in encode(flat[start : start + ENCODED_AT_ONCE], add_special_tokens=False)]
        ids = iter(found)
        return [[number for _ in parts for number in next(ids)] for parts in pieces]

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

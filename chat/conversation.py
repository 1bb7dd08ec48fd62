"""A conversation with a model: what was said, and what of it still fits the model's positions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import append_whole
from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.records import ROLES, SYSTEM, USER, Turn


class Conversation:
    """The turns so far, the system text first if there is one."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[Turn] = []
        self.reset()

    @classmethod
    def of(cls, messages: Iterable[Mapping[str, Any]]) -> Conversation:
        """Return the conversation of some messages; ValueError says in a sentence what is wrong with them."""
        conversation = cls()
        for number, message in enumerate(messages):
            role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
            if role not in ROLES or not isinstance(content, str):
                raise ValueError(f"messages[{number}] must be an object with a role ({', '.join(ROLES)}) and a content")
            if role == SYSTEM and number:
                raise ValueError(f"messages[{number}] is a system text, which can only be the first")
            try:
                content.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"messages[{number}] holds half a surrogate pair, which is no character") from None
            conversation.turns.append(Turn(role, content))
        if not conversation.turns or conversation.turns[-1].role != USER:
            raise ValueError("the last of the messages must be of the user")
        return conversation

    def reset(self) -> None:
        """Forget all but the system text."""
        self.turns = [Turn(SYSTEM, self.system)] if self.system else []

    def undo(self) -> bool:
        """Take back the last question and its answer; return whether there was one."""
        places = [place for place, turn in enumerate(self.turns) if turn.role == USER]
        if places:
            del self.turns[places[-1] :]
        return bool(places)

    def say(self, role: str, content: str) -> None:
        """Add a turn."""
        self.turns.append(Turn(role, content))

    def messages(self) -> list[dict[str, str]]:
        """Return the turns as prepare.py reads them."""
        return [turn._asdict() for turn in self.turns]

    def save(self, path: Path) -> None:
        """Append the conversation to a file, as a line that prepare.py reads."""
        line = json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n"
        try:
            append_whole(path, line.encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None


class TooLong(ValueError):
    """A question that does not fit the model's positions even alone; the message is one sentence."""


def fitted_prompt(
    encoder: ConversationEncoder, conversation: Conversation, positions: int, new_tokens: int
) -> tuple[list[int], int]:
    """Return the ids to answer after, and how many of the oldest turns were left out so that an answer has room.

    A system text stays. TooLong if the last question alone leaves no room.
    """
    turns = conversation.turns
    head = turns[: turns[0].role == SYSTEM]
    starts = [len(head), *(place for place, turn in enumerate(turns) if turn.role == USER and place > len(head))]
    exchanges = [turns[start:end] for start, end in zip(starts, [*starts[1:], len(turns)], strict=True)]
    empty = len(encoder.prompt([]))
    sizes = [len(encoder.prompt(exchange)) - empty for exchange in exchanges]
    tokens = len(encoder.prompt(head)) + sum(sizes)
    first = 0
    while tokens + new_tokens > positions and first < len(exchanges) - 1:
        tokens -= sizes[first]
        first += 1
    if tokens + new_tokens > positions:
        raise TooLong(
            f"the question has {tokens:,} tokens with what belongs to it, and with an answer of {new_tokens:,} "
            f"the model's {positions:,} positions are too few: shorten it"
        )
    kept = [turn for exchange in exchanges[first:] for turn in exchange]
    return encoder.prompt([*head, *kept]), len(turns) - len(head) - len(kept)

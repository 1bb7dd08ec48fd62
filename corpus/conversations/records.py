"""Conversations as people store them, recognised by their keys, and as one text for hashing and cleaning.

Messages ("messages" of role and content), ShareGPT ("conversations" of from and value; either key takes either kind of
turn) and Alpaca ("instruction", "input", "output", with "system" and "history" if there are any).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
_ROLE_OF = {role: role for role in ROLES} | {"human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT}
_LISTS = ("messages", "conversations")
_ALPACA = ("instruction", "output")
KEYS = (*_LISTS, *_ALPACA, "input", "system", "history")  # all that are read

# What can be wrong with a conversation; the keys stand in the manifest, the sentences in messages.
REASONS = {
    "broken_conversation": 'a conversation whose turns are no list of "role" and "content" (or "from" and "value")',
    "unknown_role": f"a conversation with a role that is none of {', '.join(ROLES)}",
    "late_system": "a conversation with a system text that is not its first turn",
    "no_answer": "a conversation without an answer",
    "empty_answer": "a conversation with an empty answer",
}


class Turn(NamedTuple):
    """What one side says; `role` is one of ROLES."""

    role: str
    content: str


Conversation = tuple[Turn, ...]


class BadConversation(ValueError):
    """A record that looks like a conversation and is none; the text is a key of REASONS."""


def holds_conversation(record: Mapping[str, Any]) -> bool:
    """Return whether the keys of a record are those of a conversation."""
    return any(name in record for name in _LISTS) or all(name in record for name in _ALPACA)


def read_conversation(record: Mapping[str, Any]) -> Conversation:
    """Return the turns of a record for which `holds_conversation` is true; BadConversation if they make no sense."""
    name = next((name for name in _LISTS if name in record), None)
    turns = tuple(_alpaca(record) if name is None else _listed(record[name], record.get("system")))
    if any(turn.role == SYSTEM for turn in turns[1:]):
        raise BadConversation("late_system")
    answers = [turn.content for turn in turns if turn.role == ASSISTANT]
    if not answers:
        raise BadConversation("no_answer")
    if not all(answer.strip() for answer in answers):
        raise BadConversation("empty_answer")
    return turns


def _listed(turns: object, system: object) -> Iterator[Turn]:
    """Yield turns as they are listed, behind the system text that stands beside the list in some files."""
    if not isinstance(turns, list):
        raise BadConversation("broken_conversation")
    if isinstance(system, str) and system:
        yield Turn(SYSTEM, system)
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadConversation("broken_conversation")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadConversation("broken_conversation")
        if role not in _ROLE_OF:
            raise BadConversation("unknown_role")
        if content or _ROLE_OF[role] != SYSTEM:  # an empty system text says nothing
            yield Turn(_ROLE_OF[role], content)


def _alpaca(record: Mapping[str, Any]) -> Iterator[Turn]:
    """Yield the turns of an Alpaca record: the input follows the instruction on a line of its own."""
    system, more, history = record.get("system") or "", record.get("input") or "", record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadConversation("broken_conversation")
    exchanges = [*history, (record["instruction"], record["output"])]
    if not all(isinstance(text, str) for text in (system, more, *(text for pair in exchanges for text in pair))):
        raise BadConversation("broken_conversation")
    if system:
        yield Turn(SYSTEM, system)
    for number, (question, answer) in enumerate(exchanges, 1):
        yield Turn(USER, f"{question}\n{more}" if more and number == len(exchanges) else question)
        yield Turn(ASSISTANT, answer)


def as_text(turns: Sequence[Turn]) -> str:
    """Return the text by which a conversation is told from others: its turns in ChatML."""
    return "\n".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>" for turn in turns)


def spoken(turns: Sequence[Turn]) -> str:
    """Return what is said, a turn a line: the text by which a conversation is cleaned, compared and shown."""
    return "\n".join(turn.content for turn in turns)

"""What the corpus report says of conversations."""

from __future__ import annotations

from collections.abc import Callable

from common.records import Count, Record


class ConversationFigures(Record):
    """What the conversations of both splits are like.

    `targets` are the tokens that count in the loss, `target_lengths` percentiles of those of a conversation. `copied`
    answers stand word for word in the turn before them; `examples` begins some.
    """

    conversations: Count
    turns: Count
    answers: Count
    system_texts: Count
    targets: Count
    target_lengths: dict[str, Count]
    copied: Count
    examples: list[str]


def conversation_facts(found: ConversationFigures, tokens: int, quote: Callable[[str], str]) -> list[tuple[str, str]]:
    """Return label and text of what is said of conversations, with `tokens` of the whole corpus."""
    at = found.target_lengths
    with_system = f", {found.system_texts:,} with a system text" if found.system_texts else ""
    facts = [
        (
            "conversations",
            f" {found.conversations:,} with {found.turns:,} turns, {found.answers:,} of them answers{with_system}",
        ),
        (
            "",
            f"{found.targets:,} of {tokens:,} tokens count in the loss: the answers and the marks that end them; "
            f"{at['min']:,} to {at['max']:,} a conversation, half up to {at['p50']:,}, 90 % up to {at['p90']:,}",
        ),
        ("", f"{found.copied:,} answers stand word for word in the turn before them, and teach a parrot"),
    ]
    return facts + [("", f"such as {quote(example)}") for example in found.examples]

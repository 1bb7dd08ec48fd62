"""What is counted of conversations while they are packed, and what the report says of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from corpus.conversations.records import ASSISTANT, SYSTEM, Conversation

EXAMPLES = 3
EXAMPLE_CHARACTERS = 40


class Figures:
    """What is counted of one chunk after the other: numbers, counters, sets, lists, and single examples."""

    def add(self, other: Figures) -> None:
        """Take in the figures of other documents."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, str):
                mine = mine or value
            elif isinstance(value, set) or type(value) is dict:
                mine |= value
            else:
                mine += value
            setattr(self, name, mine)


@dataclass
class AnswerFigures(Figures):
    """`targets` are the ids that count in the loss, of plain texts too, and `target_bytes` what they say.

    `lengths` (int64) holds the targets of each conversation. `copied` answers stand in the turn before them, word for
    word: they teach a parrot.
    """

    conversations: int = 0
    turns: int = 0
    answers: int = 0
    system_texts: int = 0
    targets: int = 0
    target_bytes: int = 0
    copied: int = 0
    examples: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Take in the figures of other conversations."""
        super().add(other)
        del self.examples[EXAMPLES:]

    def add_texts(self, texts: Sequence[str], targets: int) -> None:
        """Count plain texts, every id of which is a target."""
        self.targets += targets
        self.target_bytes += sum(len(text.encode()) for text in texts)

    def add_conversation(self, turns: Conversation, mask: Sequence[int]) -> None:
        """Count a conversation."""
        answers = [turn.content for turn in turns if turn.role == ASSISTANT]
        copies = [
            answer.content
            for before, answer in itertools.pairwise(turns)
            if answer.role == ASSISTANT and answer.content.strip() in before.content
        ]
        self.conversations += 1
        self.turns += len(turns)
        self.answers += len(answers)
        self.system_texts += turns[0].role == SYSTEM
        self.targets += sum(mask)
        self.target_bytes += sum(len(answer.encode()) for answer in answers)
        self.copied += len(copies)
        self.examples = [*self.examples, *(copy[:EXAMPLE_CHARACTERS] for copy in copies)][:EXAMPLES]
        self.lengths.append(sum(mask))

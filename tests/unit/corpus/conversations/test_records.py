"""Conversations as people store them: three shapes, and what is wrong with those that are none."""

from __future__ import annotations

from typing import Any

import pytest

from corpus.conversations.records import REASONS, BadConversation, as_text, holds_conversation, read_conversation

MESSAGES = [{"role": "user", "content": "山里有什么？"}, {"role": "assistant", "content": "一座庙。"}]
SHAREGPT = [{"from": "human", "value": "山里有什么？"}, {"from": "gpt", "value": "一座庙。"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": MESSAGES},
        {"conversations": SHAREGPT},
        {"conversations": MESSAGES, "id": 3},
        {"messages": [{"role": "system", "content": ""}, *MESSAGES]},
        {"instruction": "山里有什么？", "input": "", "output": "一座庙。"},
        {"instruction": "山里有什么？", "output": "一座庙。", "system": None},
    ],
)
def test_all_shapes_give_the_same_turns(record: dict[str, Any]) -> None:
    assert holds_conversation(record)
    assert read_conversation(record) == (("user", "山里有什么？"), ("assistant", "一座庙。"))


def test_alpaca_with_everything() -> None:
    record = {
        "instruction": "译",
        "input": "hill",
        "output": "山",
        "system": "你是译者",
        "history": [["译 tree", "树"]],
    }
    expected = (
        ("system", "你是译者"),
        ("user", "译 tree"),
        ("assistant", "树"),
        ("user", "译\nhill"),
        ("assistant", "山"),
    )
    assert read_conversation(record) == expected


@pytest.mark.parametrize("record", [{"text": "a"}, {"instruction": "a"}, {"output": "b"}, {}])
def test_other_records_are_no_conversations(record: dict[str, Any]) -> None:
    assert not holds_conversation(record)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": "a"}, "broken_conversation"),
        ({"messages": [["user", "a"]]}, "broken_conversation"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "broken_conversation"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unknown_role"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "a"}]}, "late_system"),
        ({"messages": MESSAGES[:1]}, "no_answer"),
        ({"messages": []}, "no_answer"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": " \n"}]}, "empty_answer"),
        ({"instruction": 3, "output": "a"}, "broken_conversation"),
        ({"instruction": "a", "output": None}, "broken_conversation"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "broken_conversation"),
        ({"instruction": "a", "output": "b", "history": [["a", 1]]}, "broken_conversation"),
    ],
)
def test_what_makes_no_sense_has_a_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadConversation, match=f"^{reason}$"):
        read_conversation(record)
    assert reason in REASONS


def test_the_text_of_a_conversation_shows_its_turns() -> None:
    text = as_text(read_conversation({"messages": MESSAGES}))
    assert text == "<|im_start|>user\n山里有什么？<|im_end|>\n<|im_start|>assistant\n一座庙。<|im_end|>"

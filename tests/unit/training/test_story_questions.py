"""Questions about stories: the world knows the answers, and only right ones count."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from corpus.conversations.records import read_conversation
from corpus.tokenizer import train_tokenizer
from sample_stories.questions import Asked, Question, ask, named, write_questions
from training.evaluation.story_questions import answer_questions

WHO = Question("has", "伞在谁手里？", "小红", ("小红", "小明"), ("小红。",))
WHERE = Question("where", "小明在哪里？", "小明家", ("公园", "小明家"), ("在小明家。",), ("小明",))
UNSAID = Question("unsaid", "伞在谁手里？", "", ("小红", "小明"), ("故事里没有说。",))


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return list(ask(60, 3, hamlet=True))


def test_the_ways_to_say_the_truth_are_right(asked: list[Asked]) -> None:
    questions = [question for story in asked for question in story.questions]
    assert all(question.is_right(answer) for question in questions for answer in question.answers)
    assert {question.kind for question in questions} == {"has", "where", "came", "why", "unsaid"}


def test_the_truth_stands_in_the_story_and_what_is_unsaid_does_not(asked: list[Asked]) -> None:
    for story in asked:
        for question in story.questions:
            if question.truth and not question.truth.endswith("家"):
                assert question.truth in story.story, question
            elif not question.truth and question.given:
                assert question.given[0] not in story.story or "种树" in question.text


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (WHO, "伞在小红手里。", True),
        (WHO, "小明。", False),
        (WHO, "小红和小明。", False),
        (WHO, "小红，故事里没有说。", False),
        (WHO, "", False),
        (WHERE, "小明在小明家。", True),
        (WHERE, "在公园。", False),
        (UNSAID, "没有说。", True),
        (UNSAID, "我不知道", True),
        (UNSAID, "小红。", False),
        (UNSAID, "不知道，小红？", False),
    ],
)
def test_an_answer_is_judged_by_what_it_names(question: Question, answer: str, right: bool) -> None:
    assert question.is_right(answer) is right


def test_names_within_names_are_told_apart() -> None:
    assert named("小明在小红家。", ("小明", "小红", "小红家", "小明家")) == {"小明", "小红家"}


def test_the_same_seed_asks_the_same(asked: list[Asked]) -> None:
    assert list(ask(5, 3, hamlet=True)) == asked[:5]
    assert {story.story for story in ask(20, 4, hamlet=True)} != {story.story for story in asked[:20]}


def test_questions_are_conversations_that_prepare_reads(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 10, 3, hamlet=True)
    lines = (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [read_conversation(json.loads(line)) for line in lines]
    assert len(turns) == 10 and all(len(conversation) >= 2 for conversation in turns)


def test_the_share_right_is_that_of_the_first_questions(asked: list[Asked]) -> None:
    """A stand-in for a model answers the first half of the questions, and says nothing to the others."""
    tokenizer = train_tokenizer((story.prompt() for story in asked), 400)
    said = iter([story.questions[0].answers[0] if i < 30 else "" for i, story in enumerate(asked)])

    def generate(ids: torch.Tensor, mask: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = [[*tokenizer.encode(next(said)).ids, 2] for _ in ids]
        longest = max(map(len, rows))
        return torch.cat((ids, torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])), dim=1)

    model: Any = SimpleNamespace(config=SimpleNamespace(pad_token_id=0), generate=generate)
    score = answer_questions(model, tokenizer, asked)
    assert score.asked.total() == 60 and score.right.total() == 30 and score.share == 0.5
    assert 0.2 < score.chance < 0.7 and score.example == (
        asked[0].questions[0].text,
        asked[0].questions[0].answers[0],
    )

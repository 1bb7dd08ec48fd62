"""Questions about sample stories, answered by a model and judged by the world that told them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from corpus.conversations.encoding import ConversationEncoder
from corpus.conversations.records import USER, Turn
from model import CausalLM, pad_left, until_eos
from sample_stories.questions import Asked

LONGEST_ANSWER, BATCH = 24, 25  # tokens, questions


@dataclass(frozen=True)
class Score:
    """What became of the first question about each story; `chance` is the share right by guessing among fitting names.

    `asked` and `right` count questions by kind; `example` is a question with the answer as it came.
    """

    asked: Counter[str]
    right: Counter[str]
    chance: float
    example: tuple[str, str]

    @property
    def share(self) -> float:
        """The share of all questions that was answered right, 0 to 1."""
        return self.right.total() / self.asked.total()


def answer_questions(model: CausalLM, tokenizer: Tokenizer, asked: Sequence[Asked]) -> Score:
    """Let a model answer the first question about each story, greedily."""
    answers = _answers(model, tokenizer, asked)
    first = [(story, story.questions[0]) for story in asked]
    kinds = Counter(question.kind for _, question in first)
    right = Counter(
        question.kind for (_, question), answer in zip(first, answers, strict=True) if question.is_right(answer)
    )
    chance = sum(question.chance(story.story) for story, question in first) / len(first)
    return Score(kinds, right, chance, (first[0][1].text, answers[0]))


def _answers(model: CausalLM, tokenizer: Tokenizer, asked: Sequence[Asked]) -> list[str]:
    encoder, answers = ConversationEncoder(tokenizer), []
    prompts = [encoder.prompt([Turn(USER, story.prompt())]) for story in asked]
    for start in range(0, len(prompts), BATCH):
        ids, mask = pad_left(prompts[start : start + BATCH], model.config.pad_token_id)
        output = model.generate(
            ids, mask, max_new_tokens=LONGEST_ANSWER, do_sample=False, repetition_penalty=1.0, seed=0
        )
        new_ids = output[:, ids.shape[1] :].tolist()
        answers += [tokenizer.decode(until_eos(row, encoder.eos_id)[0]) for row in new_ids]
    return answers

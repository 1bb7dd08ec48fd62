"""Prompts from held-out text with their true continuations, and a model's continuations of the same prompts.

Texts that are sampled at temperature 1 without a filter show the distribution that the model has learned: their
repetition (evaluation/repetition.py) should be that of the true text. Greedy decoding shows loops soonest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from corpus.shards import MaskedStream, TokenStream
from evaluation.documents import document_ends
from model import CausalLM, pad_left, until_eos

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 64
SHORTEST = 4  # tokens of a continuation: less has no 4-gram


@dataclass(frozen=True)
class HeldOutPrompts:
    """`continuations[i]` is the true text after `prompts[i]`: `new_tokens` ids, or fewer if the document ends."""

    prompts: list[list[int]]
    continuations: list[list[int]]
    new_tokens: int = NEW_TOKENS

    def subset(self, count: int, new_tokens: int) -> HeldOutPrompts:
        """Return at most `count` of the prompts, spread evenly, with continuations of at most `new_tokens`."""
        count, length = min(count, len(self.prompts)), min(new_tokens, self.new_tokens)
        chosen = [i * len(self.prompts) // count for i in range(count)]
        return HeldOutPrompts(
            [self.prompts[i] for i in chosen], [self.continuations[i][:length] for i in chosen], length
        )


@dataclass(frozen=True)
class DecodingSettings:
    """How the next token is chosen; temperature 0 is greedy decoding."""

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


GREEDY, SAMPLED = DecodingSettings(temperature=0.0), DecodingSettings()


class Generator(Protocol):
    """A model with decoding settings that continues prompts and returns the new ids of each prompt.

    Ids after an EOS are ignored. A text must not depend on how the prompts are split into batches: `first_row` is the
    index of the batch's first prompt among all of them.
    """

    def __call__(self, prompts: list[list[int]], *, new_tokens: int, seed: int, first_row: int) -> list[list[int]]:
        """Return one list of ids for each prompt."""
        ...


def select_prompts(
    stream: TokenStream,
    *,
    bos_id: int | None,
    eos_id: int,
    count: int = PROMPTS,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> HeldOutPrompts:
    """Return at most `count` prompts, spread evenly over the stream: always the same ones for the same stream.

    A prompt is the beginning of a document (with its BOS), or the first half of a short document. A part of the stream
    in which no document begins, as in a few long documents, gives a prompt from the middle of the text.
    `bos_id` is None for a stream without BOS.
    """
    selected = HeldOutPrompts([], [], new_tokens)
    edges = [i * len(stream) // count for i in range(count + 1)]
    free = 0  # where the latest continuation ends: none overlaps another
    for first, last in pairwise(edges):
        for start in _document_starts(stream, max(first, free), last, bos_id, eos_id):
            window = stream.read(start, prompt_tokens + new_tokens)
            document_tokens = int(next(iter(document_ends(window, bos_id, eos_id)), len(window)))
            length = min(prompt_tokens, max(document_tokens // 2, document_tokens - new_tokens))
            prompt, rest = window[:length].tolist(), window[length : length + new_tokens].tolist()
            continuation, _ = until_eos(rest, eos_id)
            if length >= 2 and len(continuation) >= SHORTEST:
                selected.prompts.append(prompt)
                selected.continuations.append(continuation)
                free = start + length + len(continuation)
                break
    return selected


def select_questions(stream: MaskedStream, *, most_tokens: int, count: int, new_tokens: int) -> HeldOutPrompts:
    """Return at most `count` conversations up to an answer, with that answer: the same ones for the same stream.

    They are spread evenly over the stream; a question of more than `most_tokens` is left out.
    """
    if not len(stream):
        return HeldOutPrompts([], [], new_tokens)
    ids, mask = stream.read(0, len(stream)), stream.mask.read(0, len(stream))
    begins = np.flatnonzero(np.concatenate(([True], ids[:-1] == stream.eos_id)) & (ids == stream.bos_id))
    answers = np.flatnonzero((mask[1:] == 1) & (mask[:-1] == 0)) + 1
    starts = begins[np.searchsorted(begins, answers, side="right") - 1]
    fitting = np.flatnonzero(answers - starts <= most_tokens)
    selected = HeldOutPrompts([], [], new_tokens)
    for place in fitting[np.linspace(0, len(fitting), min(count, len(fitting)), endpoint=False).astype(int)]:
        start, answer = int(starts[place]), int(answers[place])
        selected.prompts.append(ids[start:answer].tolist())
        selected.continuations.append(until_eos(ids[answer : answer + new_tokens].tolist(), stream.eos_id)[0])
    return selected


def measure_answers(outputs: list[list[int]], truths: list[list[int]], new_tokens: int) -> dict[str, float]:
    """Return how long answers are beside the true ones, and the shares that are empty or not over at `new_tokens`."""

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return {
        "answer_tokens": mean(map(len, outputs)),
        "true_answer_tokens": mean(map(len, truths)),
        "empty_answers": mean(not output for output in outputs),
        "endless_answers": mean(len(output) >= new_tokens for output in outputs),
        "true_endless_answers": mean(len(truth) >= new_tokens for truth in truths),
    }


def _document_starts(stream: TokenStream, first: int, last: int, bos_id: int | None, eos_id: int) -> list[int]:
    """Return where documents begin among the tokens first..last-1, or `first` itself where none does."""
    if first >= last:
        return []
    before = max(0, first - 1)
    ends = document_ends(stream.read(before, last - before), bos_id, eos_id)
    starts = [0] if first == 0 else []
    starts += [start for start in (ends + 1 + before).tolist() if start < last]
    return starts or [first]


def make_generator(model: CausalLM, settings: DecodingSettings) -> Generator:
    """Return a Generator of our own network. It raises GenerationError if the network's output is not finite."""

    def generate(prompts: list[list[int]], *, new_tokens: int, seed: int, first_row: int) -> list[list[int]]:
        ids, mask = pad_left(prompts, model.config.pad_token_id)
        output = model.generate(
            ids,
            mask,
            max_new_tokens=new_tokens,
            do_sample=not settings.greedy,
            temperature=settings.temperature or 1.0,
            top_k=0,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            seed=seed,
            first_row=first_row,
        )
        return output[:, ids.shape[1] :].tolist()

    return generate


def generate_continuations(
    generator: Generator, held_out: HeldOutPrompts, *, eos_id: int, seed: int = 0, batch_size: int = PROMPTS
) -> list[list[int]]:
    """Return the generator's continuation of each prompt, cut before its EOS."""
    outputs = []
    for first in range(0, len(held_out.prompts), batch_size):
        batch = held_out.prompts[first : first + batch_size]
        outputs += generator(batch, new_tokens=held_out.new_tokens, seed=seed, first_row=first)
    return [until_eos(output, eos_id)[0] for output in outputs]

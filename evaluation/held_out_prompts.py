"""Prompts from held-out text with their true continuations, and what a model makes of the same prompts.

"Sampled" (temperature 1, nothing filtered) is what the model itself believes: its figures (evaluation/repetition.py) ought
to be those of the true text. "Greedy" always takes the likeliest token, which shows loops soonest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from corpus.shards import TokenStream
from model import CausalLM
from model.inference.generate import pad_left, until_end

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 64
SHORTEST = 4  # tokens of a continuation: less has no 4-gram


@dataclass(frozen=True)
class Probe:
    """`truths[i]` is how the document of `prompts[i]` goes on: `new_tokens` ids, or fewer up to its end mark."""

    prompts: list[list[int]]
    truths: list[list[int]]
    new_tokens: int = NEW_TOKENS


class Generate(Protocol):
    """A model that continues prompts: the new ids of each, what follows an end mark being of no account.

    The texts must not depend on how the prompts are split into batches; `first_row` is the number of the first.
    """

    def __call__(
        self, prompts: list[list[int]], *, new_tokens: int, greedy: bool, seed: int, first_row: int
    ) -> list[list[int]]:
        """One list of ids for each prompt."""


def held_out(
    stream: TokenStream,
    *,
    begin_id: int | None,
    end_id: int,
    count: int = PROMPTS,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
) -> Probe:
    """At most `count` prompts, spread evenly over the stream: always the same for the same stream.

    A prompt is the beginning of a document (begin mark included), of a short document the first half. Where a part of
    the stream holds no beginning, as in one of a few long documents, it is taken from the middle of the text.
    A stream without begin marks gives None for `begin_id`.
    """
    probe = Probe([], [], new_tokens)
    edges = [i * len(stream) // count for i in range(count + 1)]
    free = 0  # where the latest continuation ends: none overlaps another
    for first, last in pairwise(edges):
        for start in _candidates(stream, max(first, free), last, begin_id, end_id):
            window = stream.read(start, prompt_tokens + new_tokens)
            cut = _document_end(window, begin_id, end_id)
            length = min(prompt_tokens, max(cut // 2, cut - new_tokens))
            prompt, rest = window[:length].tolist(), window[length : length + new_tokens].tolist()
            truth, _ = until_end(rest, end_id)
            if length >= 2 and len(truth) >= SHORTEST:
                probe.prompts.append(prompt)
                probe.truths.append(truth)
                free = start + length + len(truth)
                break
    return probe


def _candidates(stream: TokenStream, first: int, last: int, begin_id: int | None, end_id: int) -> Iterator[int]:
    """Where documents begin among the tokens first..last-1; failing that, `first` itself."""
    ids = stream.read(max(0, first - 1), last - max(0, first - 1))
    starts = (np.flatnonzero(_boundaries(ids, begin_id, end_id)) + 1 + max(0, first - 1)).tolist()
    if first == 0 and last > 0:
        starts.insert(0, 0)
    yield from starts
    if not starts and first < last:
        yield first


def _boundaries(ids: np.ndarray, begin_id: int | None, end_id: int) -> np.ndarray:
    """True at i where ids[i] ends a document and ids[i + 1] begins one; marks inside a chat keep it together."""
    ends = ids[:-1] == end_id
    return ends if begin_id is None else ends & (ids[1:] == begin_id)


def _document_end(window: np.ndarray, begin_id: int | None, end_id: int) -> int:
    """Tokens of the window that belong to its first document, end mark left out."""
    found = np.flatnonzero(_boundaries(window, begin_id, end_id))
    if len(found):
        return int(found[0])
    return len(window) - int(len(window) > 0 and window[-1] == end_id)


def writer(model: CausalLM) -> Generate:
    """Our own network as a `Generate`; GenerationError if its output is not finite."""

    def generate(
        prompts: list[list[int]], *, new_tokens: int, greedy: bool, seed: int, first_row: int
    ) -> list[list[int]]:
        ids, mask = pad_left(prompts, model.config.pad_token_id)
        output = model.generate(
            ids,
            mask,
            max_new_tokens=new_tokens,
            do_sample=not greedy,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            seed=seed,
            first_row=first_row,
        )
        return output[:, ids.shape[1] :].tolist()

    return generate


def write(
    generate: Generate, probe: Probe, *, end_id: int, greedy: bool, seed: int = 0, batch_size: int = PROMPTS
) -> list[list[int]]:
    """What the model makes of the prompts, each cut at the end mark: greedy, or sampled as it believes, seeded."""
    outputs = []
    for first in range(0, len(probe.prompts), batch_size):
        outputs += generate(
            probe.prompts[first : first + batch_size],
            new_tokens=probe.new_tokens,
            greedy=greedy,
            seed=seed,
            first_row=first,
        )
    return [until_end(output, end_id)[0] for output in outputs]

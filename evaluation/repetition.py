"""How much a text repeats itself, as figures that mean the same for a model's output and for true text.

Everything here works on sequences of token ids. An n-gram is a run of n ids; figures are shares from 0 to 1, and None
where the text is too short to have one. They depend on length (a longer text repeats more), so compare texts of one
length, or better each output with the true continuation of the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOOP_TOKENS = 12  # a loop covers at least so many: a refrain, or "……" at the end of a sentence, is none


@dataclass(frozen=True)
class Figures:
    """Means over `outputs` texts, those too short for a figure left out of it; None where all of them are."""

    repetition: float | None
    copying: float | None
    distinct_2: float | None
    loops: float | None
    outputs: int


def repetition(output: Sequence[int], n: int = 4) -> float | None:
    """Share of the n-grams that occurred before in the same output: seq-rep-n of Welleck et al. 2019."""
    grams = list(_ngrams(output, n))
    return 1 - len(set(grams)) / len(grams) if grams else None


def copying(prompt: Sequence[int], output: Sequence[int], n: int = 4) -> float | None:
    """Share of the output's n-grams that stand in its prompt."""
    grams = list(_ngrams(output, n))
    known = set(_ngrams(prompt, n))
    return sum(gram in known for gram in grams) / len(grams) if grams else None


def distinct(outputs: Iterable[Sequence[int]], n: int = 2) -> float | None:
    """Different n-grams over all n-grams, of all outputs together: distinct-n of Li et al. 2016."""
    grams = [gram for output in outputs for gram in _ngrams(output, n)]
    return len(set(grams)) / len(grams) if grams else None


def loop_period(output: Sequence[int], repeats: int = 3) -> int | None:
    """Length of the loop that an output ends in, None without one.

    A loop of period p: the last p tokens stand at least `repeats` times in a row at the end, over LOOP_TOKENS tokens or
    more; the last round may be broken off. Of several the shortest.
    """
    for period in range(1, len(output) // repeats + 1):
        length = period  # of the part at the end in which every token equals the one a period before it
        while length < len(output) and output[-length - 1] == output[-length - 1 + period]:
            length += 1
        if length >= max(repeats * period, LOOP_TOKENS):
            return period
    return None


def measure(prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Figures:
    """The four figures of some outputs, each with its prompt; ValueError if there are not as many of both."""
    pairs = list(zip(prompts, outputs, strict=True))
    return Figures(
        repetition=_mean(repetition(output) for output in outputs),
        copying=_mean(copying(prompt, output) for prompt, output in pairs),
        distinct_2=distinct(outputs),
        loops=_mean(float(loop_period(output) is not None) for output in outputs),
        outputs=len(outputs),
    )


def _ngrams(ids: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    return zip(*(ids[i:] for i in range(n)), strict=False)  # the shifted copies end one by one, the n-grams with them


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

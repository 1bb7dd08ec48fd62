"""Metrics of how much a text repeats itself, the same for a model's output and for true text.

All of them work on sequences of token ids, are shares from 0 to 1, and None for a text that is too short. They grow
with the length of a text, so compare texts of one length, or better each output with the true continuation of its
prompt.

To add a metric, write its function, add it to RepetitionMetrics, METRICS and `measure_repetition`, and its names to
diagnosis/report/locales/ ("metrics" for the terminal, "page" for the page).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOOP_TOKENS = 12  # a loop covers at least so many: a refrain, or "……" at the end of a sentence, is none


@dataclass(frozen=True)
class RepetitionMetrics:
    """Means over `outputs` texts, without those too short for a metric; None where all of them are too short."""

    repetition: float | None
    copying: float | None
    distinct_2: float | None
    loops: float | None
    outputs: int


METRICS = ("repetition", "copying", "distinct_2", "loops")


def repetition_rate(output: Sequence[int], n: int = 4) -> float | None:
    """Return the share of n-grams that occurred before in the same output: seq-rep-n of Welleck et al. 2019."""
    grams = list(_ngrams(output, n))
    return 1 - len(set(grams)) / len(grams) if grams else None


def copying_rate(prompt: Sequence[int], output: Sequence[int], n: int = 4) -> float | None:
    """Return the share of the output's n-grams that also occur in its prompt."""
    grams = list(_ngrams(output, n))
    known = set(_ngrams(prompt, n))
    return sum(gram in known for gram in grams) / len(grams) if grams else None


def distinct_n(outputs: Iterable[Sequence[int]], n: int = 2) -> float | None:
    """Return unique n-grams over all n-grams, of all outputs together: distinct-n of Li et al. 2016."""
    grams = [gram for output in outputs for gram in _ngrams(output, n)]
    return len(set(grams)) / len(grams) if grams else None


def loop_period(output: Sequence[int], repeats: int = 3) -> int | None:
    """Return the length of the loop that an output ends in, None without one.

    In a loop of period p the last p tokens occur at least `repeats` times in a row at the end, over LOOP_TOKENS tokens
    or more; the last round may be incomplete. The shortest period counts.
    """
    for period in range(1, len(output) // repeats + 1):
        length = period  # of the part at the end in which every token equals the one a period before it
        while length < len(output) and output[-length - 1] == output[-length - 1 + period]:
            length += 1
        if length >= max(repeats * period, LOOP_TOKENS):
            return period
    return None


def measure_repetition(prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> RepetitionMetrics:
    """Return the metrics of some outputs, each with its prompt; ValueError if there are not as many of both."""
    pairs = list(zip(prompts, outputs, strict=True))
    return RepetitionMetrics(
        repetition=_mean(repetition_rate(output) for output in outputs),
        copying=_mean(copying_rate(prompt, output) for prompt, output in pairs),
        distinct_2=distinct_n(outputs),
        loops=_mean(float(loop_period(output) is not None) for output in outputs),
        outputs=len(outputs),
    )


def _ngrams(ids: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    return zip(*(ids[i:] for i in range(n)), strict=False)  # the shortest of the shifted copies ends the n-grams


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

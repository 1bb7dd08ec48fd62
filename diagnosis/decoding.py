"""Text that the model generates for held-out prompts, and the decoding settings whose text is closest to true text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from corpus.shards import MaskedStream
from diagnosis.measured_text import Text
from diagnosis.models import ModelUnderTest
from evaluation.held_out_prompts import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    DecodingSettings,
    HeldOutPrompts,
    generate_continuations,
    select_prompts,
    select_questions,
)
from evaluation.repetition import METRICS, RepetitionMetrics, measure_repetition
from model import GenerationError

# Greedy first, then what people use most: a slow model gets only the first ones.
PENALTIES, TOP_PS, TEMPERATURES = (1.0, 1.1, 1.3), (0.9, 1.0), (0.7, 1.0, 0.5)
GRID = [
    *(DecodingSettings(0.0, 1.0, penalty) for penalty in PENALTIES),
    *(DecodingSettings(t, top_p, penalty) for penalty in PENALTIES for t in TEMPERATURES for top_p in TOP_PS),
]
GRID_PROMPTS, GRID_TOKENS, GRID_SECONDS, FEWEST_SETTINGS = 16, 48, 20.0, 6


@dataclass(frozen=True)
class Generated:
    """The text of all prompts with some settings, and its metrics."""

    settings: DecodingSettings
    outputs: list[list[int]]
    metrics: RepetitionMetrics


@dataclass(frozen=True)
class DecodingComparison:
    """The same prompts continued with each of several settings, and the metrics of their true continuations."""

    prompts: HeldOutPrompts
    true: RepetitionMetrics
    grid: list[Generated]
    left_out: int
    """Settings that there was no time for."""

    @property
    def best(self) -> int:
        """The index of the settings whose text is closest to true text."""
        return min(range(len(self.grid)), key=lambda index: _distance(self.grid[index].metrics, self.true))


def choose_prompts(text: Text, model: ModelUnderTest) -> HeldOutPrompts:
    """Return prompts with their true continuations; short ones for a model of few positions, fewer for a large one."""
    most = min(model.positions, 1024)
    prompt_tokens = min(PROMPT_TOKENS, most // 3)
    count = 32 if model.is_fast else 12
    new_tokens = min(NEW_TOKENS, most - prompt_tokens)
    if isinstance(text.held_out, MaskedStream):
        return select_questions(text.held_out, most_tokens=most - new_tokens, count=count, new_tokens=new_tokens)
    return select_prompts(
        text.held_out,
        bos_id=model.bos_id,
        eos_id=model.eos_id,
        count=count,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )


def generate(model: ModelUnderTest, prompts: HeldOutPrompts, settings: DecodingSettings) -> Generated:
    """Continue the prompts; GenerationError if the model's output is not finite."""
    outputs = generate_continuations(model.generator(settings), prompts, eos_id=model.eos_id)
    return Generated(settings, outputs, measure_repetition(prompts.prompts, outputs))


def estimated_seconds(prompts: HeldOutPrompts, seconds: float) -> float:
    """Return about how long `compare_settings` takes, if one pass over `prompts` takes `seconds`."""
    subset = prompts.subset(GRID_PROMPTS, GRID_TOKENS)
    share = len(subset.prompts) * subset.new_tokens / (32 * 64)
    return min(GRID_SECONDS, max(1.0, seconds * share * len(GRID)))


def compare_settings(
    model: ModelUnderTest, prompts: HeldOutPrompts, grid: Sequence[DecodingSettings] = GRID
) -> DecodingComparison:
    """Try the settings of `grid` on a part of the prompts, as many as GRID_SECONDS allow."""
    prompts = prompts.subset(GRID_PROMPTS, GRID_TOKENS)
    started, found = time.perf_counter(), []
    for settings in grid:
        if len(found) >= FEWEST_SETTINGS and time.perf_counter() - started > GRID_SECONDS:
            break
        try:
            found.append(generate(model, prompts, settings))
        except GenerationError:
            break
    true = measure_repetition(prompts.prompts, prompts.continuations)
    return DecodingComparison(prompts, true, found, len(grid) - len(found))


def _distance(metrics: RepetitionMetrics, true: RepetitionMetrics) -> float:
    """Return the sum of the metrics' differences, all of them shares; a missing one counts as 1."""
    pairs = ((getattr(metrics, name), getattr(true, name)) for name in METRICS)
    return sum(1.0 if a is None else abs(a - b) for a, b in pairs if b is not None)

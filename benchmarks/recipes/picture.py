"""Draw the studies' runs and the law through them as SVG: bits a byte against tokens, a line for each size.

python -m benchmarks.recipes draw docs/recipes.svg
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.curve import LEFT, TOP, WIDTH
from benchmarks.recipes.law import Run
from model import ModelConfig, count_parameters
from training.planning.expected_loss import MILLION, FittedLaw

HEIGHT, BOTTOM, RIGHT = 420, 40, 140
FEWEST, MOST = 2e5, 5e9  # tokens
_COLOURS = ("#2c3e50", "#2980b9", "#16a085", "#e08e0b", "#c0392b", "#8e44ad", "#7f8c8d")
_PLACES = np.geomspace(FEWEST, MOST, 60)
Axis = Callable[[float], float]


def svg(law: FittedLaw, runs: Sequence[Run], predicted: Sequence[Run]) -> str:
    """Return the picture: `runs` the law was fitted on as points, `predicted` ones, made afterwards, as crosses."""
    made = [*runs, *predicted]
    extended = float(count_parameters(ModelConfig())[1])
    last = law.expect(extended, MOST)
    low = math.floor(10 * (last.loss - last.margin)) / 10
    high = max(run.loss for run in made) + 0.05
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(tokens: float) -> float:
        return round(LEFT + math.log(tokens / FEWEST) / math.log(MOST / FEWEST) * (right - LEFT), 1)

    def y(loss: float) -> float:
        return round(bottom - (loss - low) / (high - low) * (bottom - TOP), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(x, y, low, high, right),
        # the shade of what is extended lies below the lines
        *_shade(law, extended, max(run.tokens for run in made), x, y, high),
        *_line(law, extended, FEWEST, "#999", x, y, high),
    ]
    sizes = sorted({run.parameters for run in made})
    for size, colour in zip(sizes, _COLOURS[: len(sizes)], strict=True):
        longest = max(run.tokens for run in made if run.parameters == size)
        parts += _line(law, size, longest, colour, x, y, high)
        for some, mark in ((runs, _point), (predicted, _cross)):
            parts += [mark(x(run.tokens), y(run.loss), colour) for run in some if run.parameters == size]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(x: Axis, y: Axis, low: float, high: float, right: float) -> Iterator[str]:
    for tenth in range(math.ceil(10 * low), math.floor(10 * high) + 1, 2):
        loss = tenth / 10
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y(loss)}" y2="{y(loss)}" stroke="#eee"/>'
        yield f'<text x="{LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss:.1f}</text>'
    for power in range(6, 10):
        name = f"{10 ** (power - 6):g} M" if power < 9 else "1 G"
        yield f'<text x="{x(10**power)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>'
    yield f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">tokens; bits a byte of held-out prose</text>'


def _shade(law: FittedLaw, size: float, least: float, x: Axis, y: Axis, high: float) -> Iterator[str]:
    """Yield the interval of a size, from a length on."""
    expected = [(tokens, law.expect(size, tokens)) for tokens in map(float, _PLACES) if tokens >= least]
    shown = [(tokens, found) for tokens, found in expected if found.loss + found.margin < high]
    edge = [(x(tokens), y(found.loss + found.margin)) for tokens, found in shown]
    edge += [(x(tokens), y(found.loss - found.margin)) for tokens, found in reversed(shown)]
    yield f'<polygon points="{_points(edge)}" fill="#eee"/>'


def _line(law: FittedLaw, size: float, longest: float, colour: str, x: Axis, y: Axis, high: float) -> Iterator[str]:
    """Yield the law's line for a size, dashed beyond its longest run."""
    places = sorted({*map(float, _PLACES), longest})
    expected = [(tokens, law.expect(size, tokens).loss) for tokens in places]
    shown = [(x(tokens), y(loss), tokens) for tokens, loss in expected if loss < high]
    for part, dashes in (
        ([(across, down) for across, down, tokens in shown if tokens <= longest], ""),
        ([(across, down) for across, down, tokens in shown if tokens >= longest], ' stroke-dasharray="4 4"'),
    ):
        yield f'<polyline points="{_points(part)}" fill="none" stroke="{colour}"{dashes}/>'
    last = y(expected[-1][1])
    yield f'<text x="{WIDTH - RIGHT + 6}" y="{last + 4}" fill="{colour}">{size / MILLION:.3g} M parameters</text>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across},{down}" for across, down in places)


def _point(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'


def _cross(x: float, y: float, colour: str) -> str:
    return f'<path d="M{x - 5} {y - 5}l10 10m0 -10l-10 10" stroke="{colour}" stroke-width="2"/>'

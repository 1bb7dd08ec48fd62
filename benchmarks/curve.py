"""Draw the validation loss of runs over one text as an SVG, beside the n-gram baselines of the first run's corpus.

python -m benchmarks.curve runs/demo docs/demo.svg
python -m benchmarks.curve runs/muon runs/adamw both.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from corpus.shards import Corpus

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 50, 40, 20, 190
LINE = 13.0  # between two labels
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#7d3c98")
Points = Sequence[tuple[float, float]]
"""(million tokens, nats a token)"""


def main(runs: Sequence[Path], output: Path) -> None:
    """Read the runs' metrics and the first one's baselines, write the picture; UserError without them."""
    curves = {run.name if len(runs) > 1 else "this run": _points(run) for run in runs}
    record = json.loads((runs[0] / "run.json").read_text(encoding="utf-8"))
    baselines = Corpus.open(Path(record["corpus"]), verify="size").manifest.ngram_baselines
    try:
        output.write_text(svg(curves, baselines.losses() if baselines else {}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another file") from None


def _points(run: Path) -> Points:
    for name in ("metrics.jsonl", "run.json"):
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}: give the folder of a run, such as runs/NAME")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(row["tokens"] / 1e6, row["loss"]) for row in rows if row["split"] == "val" and row["loss"] is not None]
    if not points:
        raise UserError(f"{run} was never evaluated: there is nothing to draw")
    return points


def svg(curves: Mapping[str, Points], baselines: Mapping[str, float]) -> str:
    """`baselines` are nats a token by name, as lines across; a curve's name stands at its last loss."""
    levels = {**baselines, **{name: points[-1][1] for name, points in curves.items()}}
    losses = [*levels.values(), *(loss for points in curves.values() for _, loss in points)]
    most_tokens = max(tokens for points in curves.values() for tokens, _ in points)
    most_loss, least_loss = max(losses) * 1.05, max(0, int(min(losses)) - 1)

    def x(tokens: float) -> float:
        return round(LEFT + tokens / most_tokens * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        share = (loss - least_loss) / (most_loss - least_loss)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    right = WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in range(least_loss, int(most_loss) + 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>')
    lowest = 0.0
    for label, loss in sorted(levels.items(), key=lambda level: -level[1]):
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y(loss)}" y2="{y(loss)}" stroke="#999" stroke-dasharray="4 4"/>'
        )
        lowest = max(y(loss) + 4, lowest + LINE)  # below the label above it
        parts.append(f'<text x="{right + 6}" y="{lowest:.1f}">{label}: {loss:.2f}</text>')
    for colour, points in zip(COLOURS, curves.values(), strict=False):
        line = " ".join(f"{x(tokens)},{y(loss)}" for tokens, loss in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">0</text>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 12}" text-anchor="end">{most_tokens:.2f} M tokens</text>')
    parts.append(f'<text x="{LEFT + 8}" y="{TOP + 2}">validation loss, nats a token</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=f"folder of a run, {len(COLOURS)} at most")
    parser.add_argument("picture", type=Path, metavar="OUTPUT.svg")
    given = parser.parse_args()
    if len(given.runs) > len(COLOURS):
        parser.error(f"{len(given.runs)} runs: {len(COLOURS)} at most have a colour")
    try:
        main(given.runs, given.picture)
    except UserError as error:
        print(f"curve: {error}", file=sys.stderr)
        sys.exit(2)

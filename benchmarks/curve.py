"""Draw a run's validation loss as an SVG, beside the n-gram baselines of its corpus.

python -m benchmarks.curve runs/demo docs/demo.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common.errors import UserError
from corpus.shards import Corpus

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 50, 40, 20, 190


def main(run: Path, output: Path) -> None:
    """Read the run's metrics and its corpus's baselines, write the picture; UserError without them."""
    for name in ("metrics.jsonl", "run.json"):
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}: give the folder of a run, such as runs/NAME")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(row["tokens"] / 1e6, row["loss"]) for row in rows if row["split"] == "val" and row["loss"] is not None]
    if not points:
        raise UserError(f"{run} was never evaluated: there is nothing to draw")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    baselines = Corpus.open(Path(record["corpus"]), verify="size").manifest.ngram_baselines
    levels = [(nats, name) for name, nats in (baselines.losses().items() if baselines else ())] + [
        (points[-1][1], "this run")
    ]
    try:
        output.write_text(svg(points, levels), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another file") from None


def svg(points: list[tuple[float, float]], levels: list[tuple[float, str]]) -> str:
    """`points` are (million tokens, nats a token); `levels` are lines across with a label."""
    most_tokens = max(tokens for tokens, _ in points)
    most_loss = max(loss for loss, _ in [*points, *levels]) * 1.05

    def x(tokens: float) -> float:
        return round(LEFT + tokens / most_tokens * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        return round(HEIGHT - BOTTOM - loss / most_loss * (HEIGHT - BOTTOM - TOP), 1)

    right = WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in range(int(most_loss) + 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>')
    for loss, label in levels:
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y(loss)}" y2="{y(loss)}" stroke="#999" stroke-dasharray="4 4"/>'
        )
        parts.append(f'<text x="{right + 6}" y="{y(loss) + 4}">{label}: {loss:.2f}</text>')
    line = " ".join(f"{x(tokens)},{y(loss)}" for tokens, loss in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#c0392b" stroke-width="2"/>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">0</text>')
    parts.append(f'<text x="{right}" y="{HEIGHT - 12}" text-anchor="end">{most_tokens:.2f} M tokens</text>')
    parts.append(f'<text x="{LEFT + 8}" y="{TOP + 2}">validation loss, nats a token</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print("usage: python -m benchmarks.curve runs/NAME OUTPUT.svg", file=sys.stderr)
        sys.exit(2)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        print(f"curve: {error}", file=sys.stderr)
        sys.exit(2)

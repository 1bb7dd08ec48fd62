"""Figures of a run: `metrics.jsonl`, a JSON object a line, and the same in TensorBoard through DeepSpeed's monitor."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jsonlines

RECORDS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")  # a line for each step at which something was written
REPETITION = ("repetition", "copying", "distinct_2", "greedy_repetition", "loops")


class Metrics:
    """Rank 0's writer; `monitor` is the engine's. It clears away what is later than `first_step`."""

    def __init__(self, folder: Path, monitor: Any, first_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.monitor = monitor
        for name in RECORDS:
            _forget_after(folder / name, first_step)
        self._writer = jsonlines.Writer(self.path.open("a", encoding="utf-8"), flush=True,
                                        dumps=lambda row: json.dumps(row, ensure_ascii=False, allow_nan=False))

    def write(self, split: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Returns what it writes: one line; what is not finite (a grad norm after an overflow) becomes null, what is
        None is left out.
        """
        row = {"step": step, "split": split} | {k: _finite(v) for k, v in values.items() if v is not None}
        self._writer.write(row)
        scalars = [(_tag(split, name), value, step) for name, value in row.items()
                   if isinstance(value, (int, float)) and name not in ("step", "tokens")]
        scalars += [(f"{name}/layer_{layer}", value, step) for name in ("router_entropy",)
                    for layer, value in enumerate(row.get(name, ()))]
        if self.monitor.enabled:
            self.monitor.write_events(scalars)
        return row

    def alarm(self, step: int, name: str, message: str) -> None:
        """A line of alarms.jsonl."""
        with (self.path.parent / "alarms.jsonl").open("a", encoding="utf-8") as file:
            row = {"step": step, "alarm": name, "message": message}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.text("alarms", f"{name}: {message}", step)

    def expert_load(self, step: int, load: list[list[float]]) -> None:
        """Share of the routes that each expert of each layer got: a curve an expert, a histogram a layer."""
        if not self.monitor.enabled:
            return
        self.monitor.write_events([(f"expert_load/layer_{layer}/expert_{expert}", share, step)
                                   for layer, shares in enumerate(load) for expert, share in enumerate(shares)])
        if (board := self._board()) is not None:
            for layer, shares in enumerate(load):
                edges = list(range(len(shares) + 1))
                board.add_histogram_raw(
                    f"expert_load/layer_{layer}", min=0, max=len(shares), num=1, sum=float(sum(shares)),
                    sum_squares=float(sum(s * s for s in shares)), bucket_limits=edges[1:], bucket_counts=shares,
                    global_step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Text for TensorBoard's text page."""
        if (board := self._board()) is not None:
            board.add_text(tag, text, step)
            board.flush()

    def _board(self) -> Any:
        """DeepSpeed's monitor has scalars only; its TensorBoard writer can do more."""
        board = self.monitor.tb_monitor  # None where no monitor at all is enabled
        return getattr(board, "summary_writer", None) if board is not None and board.enabled else None

    def close(self) -> None:
        """Flush both."""
        self._writer.close()
        if (board := self._board()) is not None:
            board.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tag(split: str, name: str) -> str:
    """TensorBoard's name of a figure: those of repetition get a page of their own, each beside the true text's."""
    return f"repetition/{name}" if name.removeprefix("true_") in REPETITION else f"{split}/{name}"


def _forget_after(path: Path, step: int) -> None:
    """Drop lines after `step`: a run that was cut off wrote them after the checkpoint it now continues from.

    A run without a checkpoint starts anew, and with it all that is written.
    """
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if step > 0 and _step_of(line) <= step]
    beside = path.with_suffix(".jsonl.new")
    beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(beside, path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, cut off in the middle

"""Figures of a run: `metrics.jsonl`, a JSON object a line, and the same in TensorBoard through DeepSpeed's monitor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import UserError
from evaluation.language_figures import LanguageFigures
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import reason_of, write_text
from training.engine.internals import summary_writer
from training.engine.protocol import Monitor
from training.monitoring import tensorboard_events, tensorboard_pages
from training.monitoring.append_only_files import AppendedFile, DiskNotice

RECORDS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")  # a line for each step at which something was written
_RECORD_TAGS = {"samples.jsonl": "samples/", "alarms.jsonl": "alarms/"}  # as if their lines were figures
_BY_SAMPLES = "Train/Samples/"  # DeepSpeed's own figures
_LEVELS = "baselines/"  # written once, before the first step
# What is made up for at the start of a session if the one before was asked to stop meanwhile, and the figures of it
_MADE_UP_FOR = {"evaluation": ("val/", "repetition", "alarms/"), "sample": ("samples/",)}
REPETITION = ("repetition", "copying", "distinct_2", "greedy_repetition", "loops")


class Metrics:
    """Rank 0's writer; `monitor` is the engine's, whose own TensorBoard figures pass through here too.

    What is later than `state` is cleared away, so that nothing is there twice. `samples_per_step` is the global batch:
    DeepSpeed's own figures count in samples. `baselines` are levels, drawn from step 0 to `total_steps`. `say` reports
    a full disk, once; what does not fit waits in memory.
    """

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        state: RunState,
        *,
        samples_per_step: int = 1,
        baselines: dict[str, float] | None = None,
        total_steps: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.monitor, self.samples_per_step = folder, monitor, samples_per_step
        self._say = say
        self._load: tuple[int, list[list[float]]] | None = None  # of the latest line, not drawn yet
        notice = DiskNotice(folder, say)
        self._files = {name: AppendedFile(folder / name, notice) for name in RECORDS}
        self._board = summary_writer(monitor)
        self._events = tensorboard_events.take_over(self._board, notice) if self._board is not None else None
        try:
            self.rewind(state)
        except OSError as error:
            raise UserError(f"{folder} could not be cut back to step {state.step:,}: {reason_of(error)}") from None
        if monitor.enabled and not _has_begun(state):
            levels = (baselines or {}).items()
            monitor.write_events([(_LEVELS + name, nats, x) for name, nats in levels for x in (0, total_steps)])

    def write(self, split: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Write one line and return it.

        What is not finite (a gradient norm after an overflow) becomes null, what is None is left out.
        """
        not_finite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        known = {name: value for name, value in values.items() if value is not None}
        row = {"step": step, "split": split} | known | dict.fromkeys(not_finite)
        self._append("metrics.jsonl", row)
        scalars = [
            (_tag(split, name), value, step)
            for name, value in row.items()
            if isinstance(value, (int, float)) and name not in ("step", "tokens", "seconds")
        ]
        scalars += [
            (f"router_entropy/layer_{layer}", value, step) for layer, value in enumerate(row.get("router_entropy", ()))
        ]
        self._draw_load(row)
        if self.monitor.enabled:
            self.monitor.write_events(scalars)
        for file in self._files.values():
            file.flush()
        return row

    def _draw_load(self, row: dict[str, Any]) -> None:
        """Show TensorBoard what the experts had to do, at every evaluation: a picture takes some milliseconds."""
        if "expert_load" in row:
            self._load = row["step"], row["expert_load"]
        elif row["split"] == "val" and self._load and self._board is not None:
            step, load = self._load
            self._board.file_writer.add_summary(tensorboard_pages.load_picture(load), step)
            self._load = None

    def alarm(self, step: int, name: str, message: str) -> None:
        """Write a line of alarms.jsonl."""
        self._append("alarms.jsonl", {"step": step, "alarm": name, "message": message})
        self._text("alarms", f"{name}: {message}", step)

    def sample(self, step: int, rows: list[dict[str, str]]) -> None:
        """Write lines of samples.jsonl, and a text for TensorBoard."""
        self._append("samples.jsonl", *({"step": step} | row for row in rows))
        self._text("samples", tensorboard_pages.sample_text(rows), step)

    def language(self, step: int, figures: LanguageFigures) -> None:
        """Write what the model knows of its language into figures.json, and each figure on TensorBoard."""
        text = json.dumps({"step": step} | asdict(figures), indent=2, allow_nan=False) + "\n"
        write_text(self.folder / "figures.json", text, self._say)
        if self.monitor.enabled:
            self.monitor.write_events([(tag, value, step) for tag, value in figures.scalars().items()])

    def _text(self, tag: str, text: str, step: int) -> None:
        """Write on TensorBoard's text page."""
        if self._board is not None:
            self._board.add_text(tag, text, step)
            self._board.flush()

    def rewind(self, state: RunState) -> None:
        """Drop what is later than `state`: a run that was cut off, or went back, wrote it after the checkpoint."""
        for name, file in self._files.items():
            file.keep_only(lambda line, name=name: _is_line_of(state, name, line))

        def keep_figure(tag: str, x: int) -> bool:
            if tag.startswith(_LEVELS):
                return _has_begun(state)
            return _is_part_of(state, tag, x / self.samples_per_step if tag.startswith(_BY_SAMPLES) else x)

        # the JSON may name a folder that other runs share
        if self._events is not None and self._events.path.resolve().is_relative_to(self.folder.resolve()):
            tensorboard_events.cut_back_events(self._events, keep_figure)

    def sync(self) -> None:
        """Have the disk hold what is written so far: before a checkpoint, that nothing be missing after a return."""
        for file in self._files.values():
            file.sync()
        if self._events is not None:
            self._events.sync()

    def _append(self, name: str, *rows: dict[str, Any]) -> None:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        self._files[name].append(*(line.encode() for line in lines))


def _tag(split: str, name: str) -> str:
    """Return TensorBoard's name of a figure; those of repetition get a page of their own, beside the true text's."""
    return f"repetition/{name}" if name.removeprefix("true_") in REPETITION else f"{split}/{name}"


def _has_begun(state: RunState) -> bool:
    """Return whether a checkpoint is continued, if only one from before the first step."""
    return bool(state.step or state.done)


def _is_part_of(state: RunState, tag: str, step: float, alarm: str | None = None) -> bool:
    """Return whether a run at `state` has written the figure and will not write it again.

    At its very step it may have been asked to stop before it evaluated, which the next session then made up for.
    """
    if step != state.step:
        return step < state.step
    if alarm is not None:
        return alarm in state.alarms
    return all(state.done.get(work) == step for work, tags in _MADE_UP_FOR.items() if tag.startswith(tags))


def _is_line_of(state: RunState, name: str, line: bytes) -> bool:
    """Return whether a line of the file `name` is whole, and one that a run at `state` has written."""
    try:
        row = json.loads(line)
        return _is_part_of(state, _RECORD_TAGS.get(name) or f"{row['split']}/", row["step"], row.get("alarm"))
    except (ValueError, KeyError, TypeError):
        return False

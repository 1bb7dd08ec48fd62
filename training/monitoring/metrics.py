"""Figures of a run: `metrics.jsonl`, a JSON object a line, and the same in TensorBoard through DeepSpeed's monitor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from training.checkpointing.disk import Appender, DiskNotice, keep_whole, reason_of
from training.checkpointing.run_state import RunState
from training.engine.internals import summary_writer
from training.engine.protocol import Monitor
from training.monitoring import tensorboard_events

RECORDS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")  # a line for each step at which something was written
_RECORD_TAGS = {"samples.jsonl": "samples/", "alarms.jsonl": "alarms/"}  # as if their lines were figures
_BY_SAMPLES = ("Train/Samples/", "Train_Samples_")  # DeepSpeed's own figures; in TensorBoard, in csv_monitor
# What is made up for at the start of a session if the one before was asked to stop meanwhile, and the figures of it
_MADE_UP_FOR = {"evaluation": ("val/", "val_", "repetition", "alarms/"), "sample": ("samples/",)}
REPETITION = ("repetition", "copying", "distinct_2", "greedy_repetition", "loops")


class Metrics:
    """Rank 0's writer; `monitor` is the engine's, whose own figures pass through here too.

    What a run that stands at `state` has not behind it is cleared away, so that nothing is there twice.
    `samples_per_step` is the batch: DeepSpeed's own figures count in samples. A full disk is told once with `say`; what
    it has no room for waits in memory (training/checkpointing/disk.py).
    """

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        state: RunState,
        *,
        samples_per_step: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.monitor, self.samples_per_step = folder, monitor, samples_per_step
        notice = DiskNotice(folder, say)
        self._files = {name: Appender(folder / name, notice) for name in RECORDS}
        board = summary_writer(monitor)
        self._events = tensorboard_events.take_over(board, notice) if board is not None else None
        self._csv = _PatientCsv.take_over(monitor, notice)
        try:
            self.rewind(state)
        except OSError as error:
            raise UserError(f"{folder} could not be cut back to step {state.step:,}: {reason_of(error)}") from None

    def write(self, split: str, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Returns what it writes: one line; what is not finite (a grad norm after an overflow) becomes null, what is
        None is left out.
        """
        row = {"step": step, "split": split} | {k: _finite(v) for k, v in values.items() if v is not None}
        self._append("metrics.jsonl", row)
        scalars = [
            (_tag(split, name), value, step)
            for name, value in row.items()
            if isinstance(value, (int, float)) and name not in ("step", "tokens")
        ]
        scalars += [
            (f"{name}/layer_{layer}", value, step)
            for name in ("router_entropy",)
            for layer, value in enumerate(row.get(name, ()))
        ]
        if self.monitor.enabled:
            self.monitor.write_events(scalars)
        for file in self._files.values():
            file.retry()
        return row

    def alarm(self, step: int, name: str, message: str) -> None:
        """A line of alarms.jsonl."""
        self._append("alarms.jsonl", {"step": step, "alarm": name, "message": message})
        self.text("alarms", f"{name}: {message}", step)

    def sample(self, step: int, rows: list[dict[str, str]]) -> None:
        """Lines of samples.jsonl, and a text."""
        self._append("samples.jsonl", *({"step": step} | row for row in rows))
        lines = [f"{row['prompt']}|{row['text']}".replace("\n", " ") for row in rows]
        self.text("samples", "\n\n".join(lines), step)

    def expert_load(self, step: int, load: list[list[float]]) -> None:
        """Share of the routes that each expert of each layer got: a curve an expert, a histogram a layer."""
        if not self.monitor.enabled:
            return
        self.monitor.write_events(
            [
                (f"expert_load/layer_{layer}/expert_{expert}", share, step)
                for layer, shares in enumerate(load)
                for expert, share in enumerate(shares)
            ]
        )
        if (board := summary_writer(self.monitor)) is not None:
            for layer, shares in enumerate(load):
                edges = list(range(len(shares) + 1))
                board.add_histogram_raw(
                    f"expert_load/layer_{layer}",
                    min=0,
                    max=len(shares),
                    num=1,
                    sum=float(sum(shares)),
                    sum_squares=float(sum(s * s for s in shares)),
                    bucket_limits=edges[1:],
                    bucket_counts=shares,
                    global_step=step,
                )
            board.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        """Text for TensorBoard's text page."""
        if (board := summary_writer(self.monitor)) is not None:
            board.add_text(tag, text, step)
            board.flush()

    def rewind(self, state: RunState) -> None:
        """Forget what is later than `state`: a run that was cut off, or went back, wrote it after the checkpoint."""
        for name, file in self._files.items():
            _forget(
                file,
                lambda row, name=name: _is_behind(
                    state, _RECORD_TAGS.get(name) or f"{row['split']}/", row["step"], row.get("alarm")
                ),
            )

        def keep(tag: str, x: int) -> bool:
            return _is_behind(state, tag, x / self.samples_per_step if tag.startswith(_BY_SAMPLES) else x)

        if self._events is not None and self._is_own(self._events.path.parent):
            tensorboard_events.forget(self._events.path.parent, keep, current=self._events)
        if self._csv is not None and self._is_own(self._csv.folder):
            tensorboard_events.forget_csv(self._csv.folder, keep)

    def sync(self) -> None:
        """Have the disk hold what is written so far: before a checkpoint, that nothing be missing after a return."""
        for file in self._files.values():
            file.sync()
        if self._events is not None:
            self._events.sync()

    def close(self) -> None:
        """A last attempt to write all."""
        self.sync()

    def _append(self, name: str, *rows: dict[str, Any]) -> None:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        self._files[name].append(*(line.encode() for line in lines))

    def _is_own(self, folder: Path) -> bool:
        """Not one that the JSON names, where other runs may write too."""
        return folder.resolve().is_relative_to(self.folder.resolve())


class _PatientCsv:
    """DeepSpeed's csv_monitor, kept from failing: the figures that it could not write wait for the next."""

    def __init__(self, monitor: Any, notice: DiskNotice) -> None:
        self.folder, self.notice, self.write_events = Path(monitor.log_dir), notice, monitor.write_events
        self.waiting: list[tuple[str, float, int]] = []
        monitor.filenames += [path.stem for path in self.folder.glob("*.csv")]  # those have their headings
        monitor.write_events = self.write

    @classmethod
    def take_over(cls, monitor: Any, notice: DiskNotice) -> _PatientCsv | None:
        """None where there is none."""
        csv_monitor = getattr(monitor, "csv_monitor", None)
        return cls(csv_monitor, notice) if csv_monitor is not None and csv_monitor.enabled else None

    def write(self, figures: list[tuple[str, float, int]]) -> None:
        """In place of the monitor's."""
        self.waiting += figures
        try:
            while self.waiting:
                self.write_events(self.waiting[:1])
                self.waiting.pop(0)
        except OSError as error:
            self.notice.failed(self.folder, error)
        else:
            self.notice.worked(self.folder)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tag(split: str, name: str) -> str:
    """TensorBoard's name of a figure: those of repetition get a page of their own, each beside the true text's."""
    return f"repetition/{name}" if name.removeprefix("true_") in REPETITION else f"{split}/{name}"


def _is_behind(state: RunState, tag: str, step: float, alarm: str | None = None) -> bool:
    """Whether a run that stands at `state` has written the figure and will not write it again.

    At its very step it may have been asked to stop before it evaluated, which the next session then made up for.
    """
    if step != state.step:
        return step < state.step
    if alarm is not None:
        return alarm in state.alarms
    return all(state.done.get(work) == step for work, tags in _MADE_UP_FOR.items() if tag.startswith(tags))


def _forget(file: Appender, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that `keep` says no to, and half a line at the end."""

    def keep_line(line: bytes) -> bool:
        try:
            return keep(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return False

    file.forget(keep_line)
    if file.path.exists():
        data = file.path.read_bytes()
        kept = (line + b"\n" for line in data.split(b"\n") if keep_line(line))
        keep_whole(file.path, data, b"".join(kept))

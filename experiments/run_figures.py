"""The figures of one run that are laid beside those of others, from whatever its folder holds.

A run may still be training, may have been copied from elsewhere without its corpus, or may be of an earlier version.
"""

from __future__ import annotations

import fcntl
import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_object
from evaluation.run_record import Row, RunRecord, finite, is_run, read_run
from evaluation.run_settings import TextFacts, settings_of, text_facts

AXES = ("step", "tokens", "time", "bytes")
"""What a curve is drawn against: optimizer steps, tokens, seconds of training, bytes of text that were trained on."""
FINISHED = ("finished", "no better validation loss")
SWEEP_RECORD = "sweep.json"  # in the folder of a sweep
Point = tuple[float, float]


@dataclass(frozen=True)
class ComparedRun:
    """A run with a name among the others."""

    name: str
    record: RunRecord
    text: TextFacts

    @property
    def seed(self) -> Any:
        """The seed of the initial weights and of the data order; None if the run does not say."""
        return self.record.flags.get("seed")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that it was trained with, by name."""
        return settings_of(self.record, self.text)

    @cached_property
    def reason(self) -> str | None:
        """Why the run ended, None while it has not; a reason from before it went on does not count."""
        summary = self.record.summary
        reason, steps = summary.get("reason"), summary.get("steps")
        continued = isinstance(steps, int) and self.record.steps > steps
        return reason if isinstance(reason, str) and not continued else None

    @cached_property
    def state(self) -> str:
        """One of finished, diverged, training, interrupted."""
        if self.reason is None:
            return "training" if is_training(self.record.folder) else "interrupted"
        if self.reason.startswith(FINISHED):
            return "finished"
        return "diverged" if self.reason.startswith("diverged") else "interrupted"

    @cached_property
    def bytes_per_token(self) -> dict[str, float]:
        """Bytes of text in a token, by split, as far as the metrics show it."""
        rows = (("train", self.record.train), ("val", self.record.val))
        return {split: ratio for split, found in rows for row in found if (ratio := _bytes_per_token(row)) is not None}

    @property
    def best(self) -> float | None:
        """The lowest validation loss in nats a token, that of the weights in model/."""
        return self.record.best[1] if self.record.best else None

    @property
    def final(self) -> float | None:
        """The last validation loss in nats a token."""
        evaluations = self.record.curve("val", "loss")
        return evaluations[-1][1] if evaluations else None

    def bits(self, nats: float | None) -> float | None:
        """Return nats a token as bits a byte of the held-out text."""
        ratio = self.bytes_per_token.get("val")
        return None if nats is None or ratio is None else nats / math.log(2) / ratio

    def curve(self, axis: str, *, split: str = "val", as_bits: bool = False) -> list[Point]:
        """Return (x, loss) along an axis, in nats a token or bits a byte; empty if the axis is not known."""
        points = self.record.curve(split, "bits_per_byte" if as_bits else "loss")
        if axis == "step":
            return [(float(step), loss) for step, loss in points]
        scale = self._scales.get(axis)
        if not scale or not points:
            return []
        steps, values = zip(*scale, strict=True)
        return [(float(np.interp(step, steps, values)), loss) for step, loss in points]

    @cached_property
    def _scales(self) -> dict[str, list[Point]]:
        """(step, value) of each axis that is known but the steps themselves."""
        rows = [*self.record.train, *self.record.val]
        counts = {row["step"]: float(row["tokens"]) for row in rows if finite(row.get("tokens"))}
        tokens: list[Point] = sorted(({0: 0.0} | counts).items()) if counts else []
        ratio = self.bytes_per_token.get("train")
        return {
            "tokens": tokens,
            "bytes": [(step, count * ratio) for step, count in tokens] if ratio else [],
            "time": self._seconds(rows),
        }

    def _seconds(self, rows: list[Row]) -> list[Point]:
        """Return (step, seconds of training until then); from the speed where an earlier version wrote no seconds."""
        known = {row["step"]: row["seconds"] for row in rows if finite(row.get("seconds"))}
        if known:
            return sorted(({0: 0.0} | known).items())
        found: list[Point] = [(0.0, 0.0)]
        before = 0
        for row in self.record.train:
            tokens, speed = row.get("tokens"), row.get("tokens_per_second")
            if isinstance(tokens, int) and finite(speed) and speed > 0:
                found.append((row["step"], found[-1][1] + max(0, tokens - before) / speed))
                before = tokens
        return found if len(found) > 1 else []

    @property
    def seconds(self) -> float | None:
        """Seconds of training up to the last line of metrics."""
        return self._scales["time"][-1][1] if self._scales["time"] else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median of the recorded speeds."""
        speeds = [row["tokens_per_second"] for row in self.record.train if finite(row.get("tokens_per_second"))]
        return statistics.median(speeds) if speeds else None

    def repetition(self) -> tuple[float | None, float | None]:
        """Return (repetition of sampled text, that of the true continuations) at the last evaluation that has them."""
        row = next((row for row in reversed(self.record.val) if finite(row.get("repetition"))), {})
        true = row.get("true_repetition")
        return row.get("repetition"), true if finite(true) else None

    def position(self) -> str | None:
        """Return how the best loss compares with the n-gram baselines, as NGramBaselines.compare; None if unknown."""
        baselines = self.text.ngram_baselines
        return baselines.compare(self.best) if baselines and self.best is not None else None


def read_runs(folders: list[Path]) -> list[ComparedRun]:
    """Read the runs, each once and under the shortest name that no other has; UserError names a folder that is none.

    What else lies in a sweep's folder is passed over, so that runs/SWEEP/* gives its runs.
    """
    asked_for = [folder for folder in folders if is_run(folder) or not _in_sweep(folder)] or folders
    places = list({folder.resolve(): folder for folder in asked_for}.values())
    for folder in places:
        if not folder.exists():
            raise UserError(f"{folder}: there is no such folder: give folders of runs, such as runs/NAME")
        if not is_run(folder):
            inside = sorted(path.name for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
            hint = f"give the runs in it, {folder}/*" if inside else "it has no run.json and no metrics.jsonl"
            raise UserError(f"{folder} is not a run of train.py: {hint}")
    names = _short_names(places)
    records = [read_run(folder) for folder in places]
    return [ComparedRun(name, record, text_facts(record)) for name, record in zip(names, records, strict=True)]


def _in_sweep(path: Path) -> bool:
    """Return whether a file or folder that is there lies in the folder of a sweep."""
    return path.exists() and (path.parent / SWEEP_RECORD).is_file()


def _short_names(folders: list[Path]) -> list[str]:
    """Return the last part of each path, and as many before it as are needed to tell them all apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]


def is_training(folder: Path) -> bool:
    """Return whether a process on this machine holds the run's lock."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return bool(read_object(folder / "lock"))
    except OSError:
        return False
    return False


def _bytes_per_token(row: Row) -> float | None:
    loss, bits = row.get("loss"), row.get("bits_per_byte")
    return loss / math.log(2) / bits if finite(loss) and finite(bits) and bits > 0 else None

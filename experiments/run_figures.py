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
from corpus.manifest import Manifest
from corpus.ngram_baselines import NGramBaselines
from evaluation.run_record import Row, RunRecord, find_corpus, finite, is_run, read_run

AXES = ("step", "tokens", "time", "bytes")
"""What a curve is drawn against: optimizer steps, tokens, seconds of training, bytes of text that were trained on."""
FINISHED = ("finished", "no better validation loss")
Point = tuple[float, float]


@dataclass(frozen=True)
class TextFacts:
    """What is known of the text that a run was trained and evaluated on; None where it is not."""

    fingerprint: str | None = None
    tokenizer: str | None = None
    held_out: tuple[int, int, int] | None = None
    """Documents, bytes and characters of the validation split, which no tokenizer changes."""
    baselines: NGramBaselines | None = None


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
        found = {}
        for split, rows in (("train", self.record.train), ("val", self.record.val)):
            ratios = [ratio for row in rows if (ratio := _bytes_per_token(row)) is not None]
            if ratios:
                found[split] = ratios[-1]
        return found

    @cached_property
    def evaluations(self) -> list[Point]:
        """(step, validation loss in nats a token)."""
        return [(float(step), loss) for step, loss in self.record.curve("val", "loss")]

    @property
    def best(self) -> float | None:
        """The lowest validation loss in nats a token, that of the weights in model/."""
        return self.record.best[1] if self.record.best else None

    @property
    def final(self) -> float | None:
        """The last validation loss in nats a token."""
        return self.evaluations[-1][1] if self.evaluations else None

    def bits(self, nats: float | None) -> float | None:
        """Return nats a token as bits a byte of the held-out text."""
        ratio = self.bytes_per_token.get("val")
        return None if nats is None or ratio is None else nats / math.log(2) / ratio

    def curve(self, axis: str, *, split: str = "val", as_bits: bool = False) -> list[Point]:
        """Return (x, loss) along an axis, in nats a token or bits a byte; empty if the axis is not known."""
        scale, key = self._scales.get(axis), "bits_per_byte" if as_bits else "loss"
        points = self.record.curve(split, key)
        if scale is None or not points:
            return []
        steps, values = scale
        return [(float(np.interp(step, steps, values)), loss) for step, loss in points]

    @cached_property
    def _scales(self) -> dict[str, tuple[list[float], list[float]]]:
        """For each axis that is known: steps, and the axis' value at each of them."""
        tokens = {row["step"]: row["tokens"] for row in self._rows if isinstance(row.get("tokens"), int)}
        if not tokens:
            steps = sorted({row["step"] for row in self._rows})
            return {"step": (steps, steps)} if steps else {}
        steps = sorted({0, *tokens})
        counts = [float(tokens.get(step, 0)) for step in steps]
        scales = {"step": ([float(s) for s in steps],) * 2, "tokens": (steps, counts)}
        if "train" in self.bytes_per_token:
            scales["bytes"] = (steps, [count * self.bytes_per_token["train"] for count in counts])
        if seconds := self._seconds():
            scales["time"] = ([step for step, _ in seconds], [value for _, value in seconds])
        return scales

    @property
    def _rows(self) -> list[Row]:
        return [*self.record.train, *self.record.val]

    def _seconds(self) -> list[Point]:
        """Return (step, seconds of training until then); from the speed where an earlier version wrote no seconds."""
        known = sorted((row["step"], row["seconds"]) for row in self._rows if finite(row.get("seconds")))
        if known:
            return [(0, 0.0), *(point for point in known if point[0] > 0)]
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
        scale = self._scales.get("time")
        return scale[1][-1] if scale else None

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
        baselines = self.text.baselines
        return baselines.compare(self.best) if baselines and self.best is not None else None


def read_runs(folders: list[Path]) -> list[ComparedRun]:
    """Read the runs, each once and under the shortest name that no other has; UserError names a folder that is none."""
    places = list({folder.resolve(): folder for folder in folders}.values())
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


def _short_names(folders: list[Path]) -> list[str]:
    """Return the last part of each path, and as many before it as are needed to tell them all apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return ["/".join(path[-depth:]) for path in parts]


def text_facts(record: RunRecord) -> TextFacts:
    """Return what the run says about its text, or else what its corpus says, if that is there and is the same."""
    said = record.record.get("text")
    if isinstance(said, dict):
        try:
            baselines = NGramBaselines.model_validate(said.get("ngram_baselines"))
        except ValueError:
            baselines = None
        held_out = said.get("held_out")
        return TextFacts(
            _text(said.get("fingerprint")), _text(said.get("tokenizer")), _three_counts(held_out), baselines
        )
    fingerprint, folder = record.corpus_fingerprint, find_corpus(record)
    if folder is None:
        return TextFacts(fingerprint)
    try:
        manifest = Manifest.read(folder)
    except UserError:
        return TextFacts(fingerprint)
    if fingerprint not in (None, manifest.fingerprint):  # prepared again since
        return TextFacts(fingerprint)
    val = manifest.splits["val"]
    return TextFacts(
        manifest.fingerprint,
        manifest.tokenizer_sha256,
        (val.documents, val.bytes, val.characters),
        manifest.ngram_baselines,
    )


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


def _three_counts(value: object) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(count, int) for count in value):
        return value[0], value[1], value[2]
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

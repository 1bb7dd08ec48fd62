"""A run's folder as it was left: every file may be missing or cut off in the middle, as in a run still going on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError

Curve = list[tuple[int, float]]
Row = dict[str, Any]

MARKS = ("run.json", "metrics.jsonl")  # a folder with one of these is a run's


@dataclass(frozen=True)
class RunRecord:
    """What a run wrote about itself. Rows of the metrics are in the order of their steps."""

    folder: Path
    train: list[Row] = field(default_factory=list)
    val: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    alarms: list[Row] = field(default_factory=list)
    preflight: list[Row] | None = None
    summary: Row = field(default_factory=dict)
    flags: Row = field(default_factory=dict)
    model: Row = field(default_factory=dict)
    corpus: str | None = None
    ds_config: Row = field(default_factory=dict)
    state: Row = field(default_factory=dict)

    def curve(self, split: str, key: str) -> Curve:
        """(step, value) of one metric, finite values only."""
        rows = self.train if split == "train" else self.val
        return [(row["step"], float(row[key])) for row in rows if _is_finite(row.get(key))]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, recorded validation loss) of the weights in model/."""
        for source in (self.summary, self.state):
            step = source.get("best_step")
            loss = source.get("best_val_loss", source.get("best_loss"))
            if isinstance(step, int) and _is_finite(loss) and step >= self._last_evaluation():
                return step, float(loss)
        return min(
            ((step, loss) for step, loss in self.curve("val", "loss") if step > 0),
            key=lambda point: point[1],
            default=None,
        )

    def _last_evaluation(self) -> int:
        """A checkpoint's or summary's best step is out of date where the metrics know a better, later one."""
        curve = [(step, loss) for step, loss in self.curve("val", "loss") if step > 0]
        return min(curve, key=lambda point: point[1])[0] if curve else 0

    @property
    def corpus_fingerprint(self) -> str | None:
        """Of the corpus that it was trained on, where a checkpoint names it."""
        name = _dict(self.state.get("identity")).get("corpus")
        return name if isinstance(name, str) else None

    @property
    def steps(self) -> int:
        """The last step that anything was recorded of."""
        return max((row["step"] for row in (*self.train, *self.val)), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps that the run was to have, where it is known."""
        total = self.summary.get("total_steps", self.schedule.get("total_num_steps"))
        return total if isinstance(total, int) else None

    @property
    def schedule(self) -> Row:
        """The parameters of the learning rate's schedule, empty where there is none."""
        return _dict(_dict(self.ds_config.get("scheduler")).get("params"))

    @property
    def tokens(self) -> int | None:
        """Training tokens seen by the last recorded step."""
        known = [row["tokens"] for row in (*self.train, *self.val) if isinstance(row.get("tokens"), int)]
        return max(known, default=None)

    @property
    def seq_len(self) -> int:
        """Tokens a row."""
        length = self.flags.get("max_seq_len")
        return length if isinstance(length, int) and length > 0 else 512


def is_run(folder: Path) -> bool:
    """Whether train.py wrote this folder."""
    return any((folder / name).is_file() for name in MARKS)


def read_run(folder: Path) -> RunRecord:
    """All that can be read; what is missing or broken is empty. UserError if nothing at all is there."""
    metrics = [row for row in _lines(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    record = _object(folder / "run.json")
    if not metrics and not record:
        raise UserError(f"{folder} holds no run.json and no metrics.jsonl that could be read: give the folder of a run")
    metrics.sort(key=lambda row: row["step"])
    checks = _object(folder / "preflight.json").get("checks")
    return RunRecord(
        folder=folder,
        train=[row for row in metrics if row.get("split") == "train"],
        val=[row for row in metrics if row.get("split") == "val"],
        samples=[
            row
            for row in _lines(folder / "samples.jsonl")
            if isinstance(row.get("step"), int) and isinstance(row.get("text"), str)
        ],
        alarms=[row for row in _lines(folder / "alarms.jsonl") if "alarm" in row],
        preflight=[check for check in checks if isinstance(check, dict)] if isinstance(checks, list) else None,
        summary=_object(folder / "summary.json"),
        flags=_dict(record.get("flags")),
        model=_dict(record.get("model")),
        corpus=record.get("corpus") if isinstance(record.get("corpus"), str) else None,
        ds_config=_object(folder / "ds_config.json"),
        state=_newest_state(folder / "checkpoints"),
    )


def find_corpus(run: RunRecord) -> Path | None:
    """The corpus that the run names; a relative path is looked for from here, and from each folder above the run."""
    if run.corpus is None:
        return None
    named = Path(run.corpus)
    places = [named, *(parent / named for parent in run.folder.resolve().parents)]
    return next((place for place in places if (place / "manifest.json").is_file()), None)


def _newest_state(checkpoints: Path) -> Row:
    states = [_object(path) for path in sorted(checkpoints.glob("step-*/run_state.json"))]
    return states[-1] if states else {}


def _object(path: Path) -> Row:
    try:
        return _dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _lines(path: Path) -> Iterator[Row]:
    """The objects of a .jsonl file; a line that is none, such as a last one half written, is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

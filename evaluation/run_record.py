"""A run's folder as it was left: every file may be missing or incomplete, as in a run that is still training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from common.errors import UserError
from common.files import read_json_lines, read_object

Curve = list[tuple[int, float]]
Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run wrote about itself. The rows of metrics.jsonl are in the order of their steps."""

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
    """run_state.json of the newest checkpoint."""
    record: Row = field(default_factory=dict)
    """run.json as a whole."""

    def curve(self, split: str, key: str) -> Curve:
        """Return (step, value) of one metric, finite values only."""
        rows = self.train if split == "train" else self.val
        return [(row["step"], float(row[key])) for row in rows if finite(row.get(key))]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, recorded validation loss) of the weights in model/."""
        evaluations = [(step, loss) for step, loss in self.curve("val", "loss") if step > 0]
        lowest = min(evaluations, key=lambda point: point[1], default=None)
        for source in (self.summary, self.state):
            step = source.get("best_step")
            loss = source.get("best_val_loss", source.get("best_loss"))
            # it is out of date if the metrics have a better, later evaluation
            if isinstance(step, int) and finite(loss) and step >= (lowest[0] if lowest else 0):
                return step, float(loss)
        return lowest

    @property
    def corpus_fingerprint(self) -> str | None:
        """The fingerprint of the corpus that it was trained on, if a checkpoint has it."""
        name = _dict(self.state.get("identity")).get("corpus")
        return name if isinstance(name, str) else None

    @property
    def steps(self) -> int:
        """The last recorded step."""
        return max((row["step"] for row in (*self.train, *self.val)), default=0)

    @property
    def total_steps(self) -> int | None:
        """The steps that the run was to have, if known."""
        total = self.summary.get("total_steps", self.schedule.get("total_num_steps"))
        return total if isinstance(total, int) else None

    @property
    def schedule(self) -> Row:
        """The parameters of the learning rate schedule, empty without one."""
        return _dict(_dict(self.ds_config.get("scheduler")).get("params"))

    @property
    def optimizer(self) -> Row:
        """The parameters of the optimizer, empty without one."""
        return _dict(_dict(self.ds_config.get("optimizer")).get("params"))

    @property
    def tokens(self) -> int | None:
        """The training tokens seen by the last recorded step."""
        known = [row["tokens"] for row in (*self.train, *self.val) if isinstance(row.get("tokens"), int)]
        return max(known, default=None)

    @property
    def taught_answers(self) -> bool:
        """Whether it was trained on conversations: then its evaluations measured answers."""
        return any("answer_tokens" in row for row in self.val)

    @property
    def seq_len(self) -> int:
        """The tokens of a packed row."""
        length = self.flags.get("max_seq_len")
        return length if isinstance(length, int) and length > 0 else 512


def is_run(folder: Path) -> bool:
    """Return whether train.py wrote this folder."""
    return any((folder / name).is_file() for name in ("run.json", "metrics.jsonl"))


def run_of(model_folder: Path) -> Path | None:
    """Return the run that a model's folder is the best model of, None if it lies alone."""
    return model_folder.parent if model_folder.name == "model" and is_run(model_folder.parent) else None


def read_run(folder: Path) -> RunRecord:
    """Read what can be read; what is missing or broken is empty. UserError if nothing at all is there."""
    metrics = [row for row in read_json_lines(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    record = read_object(folder / "run.json")
    if not metrics and not record:
        raise UserError(f"{folder} holds no run.json and no metrics.jsonl that could be read: give the folder of a run")
    metrics.sort(key=lambda row: row["step"])
    checks = read_object(folder / "preflight.json").get("checks")
    samples = [
        row
        for row in read_json_lines(folder / "samples.jsonl")
        if isinstance(row.get("step"), int) and all(isinstance(row.get(key), str) for key in ("prompt", "text"))
    ]
    states = [read_object(path) for path in sorted((folder / "checkpoints").glob("step-*/run_state.json"))]
    corpus = record.get("corpus")
    return RunRecord(
        folder=folder,
        train=[row for row in metrics if row.get("split") == "train"],
        val=[row for row in metrics if row.get("split") == "val"],
        samples=samples,
        alarms=[row for row in read_json_lines(folder / "alarms.jsonl") if "alarm" in row and finite(row.get("step"))],
        preflight=[_check(row) for row in checks if isinstance(row, dict)] if isinstance(checks, list) else None,
        summary=read_object(folder / "summary.json"),
        flags=_dict(record.get("flags")),
        model=_dict(record.get("model")),
        corpus=corpus if isinstance(corpus, str) else None,
        ds_config=read_object(folder / "ds_config.json"),
        state=states[-1] if states else {},
        record=record,
    )


def _check(row: Row) -> Row:
    """Return a line of preflight.json as it is written today; older runs have no levels, and hints by another name."""
    level = "pass" if row.get("ok") else "fail"
    return row | {
        "level": row.get("level", level),
        "text": row.get("text", ""),
        "hint": row.get("hint", row.get("mend")),
    }


def find_corpus(run: RunRecord) -> Path | None:
    """Find the corpus that the run names; a relative path may start here or at any folder above the run."""
    if run.corpus is None:
        return None
    named = Path(run.corpus)
    places = [named, *(parent / named for parent in run.folder.resolve().parents)]
    return next((place for place in places if (place / "manifest.json").is_file()), None)


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def finite(value: object) -> TypeGuard[float]:
    """Return whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""What earlier sessions have left in the folder of a run: checkpoints to continue from, results not to be replaced.

PyTorch is not needed: it is looked at before the imports that take seconds.
"""

from __future__ import annotations

import os
import re
from collections import deque
from itertools import count
from pathlib import Path

from common.errors import UserError
from common.files import read_json, read_json_lines

STATE_FILE = "run_state.json"
_NAME = re.compile(r"step-(\d{8})")
# What a run leaves beside its checkpoints and logs. Metrics and the flags' record are moved last: they are judged.
_RESULTS = (
    "model",
    "samples.jsonl",
    "alarms.jsonl",
    "divergence.jsonl",
    "tensorboard",
    "csv_monitor",
    "summary.json",
    "figures.json",
)
_METRICS, _RECORDS = "metrics.jsonl", ("preflight.json", "hparams", "ds_config.json", "run.json")
_MOST_BYTES = 2**20


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders with a checkpoint's name, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def find(output: Path, resume: str) -> list[Path]:
    """Return the checkpoints to continue from, oldest first; UserError if `resume` names none or would undo a run."""
    own = checkpoints_in(output / "checkpoints")
    if resume == "auto":
        return own
    if resume == "never":
        if own:
            raise UserError(
                f"{output} already holds a run and --resume never would overwrite it: give another "
                "--output, or delete the folder"
            )
        return []
    path = Path(resume)
    found = (
        [path]
        if (path / STATE_FILE).is_file()
        else checkpoints_in(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    )
    if not found:
        raise UserError(
            f"--resume {resume}: no checkpoint there; give a folder such as runs/NAME/checkpoints/step-00001000"
        )
    if own and own[-1].name > found[-1].resolve().name:  # the same command again must not undo what it has done
        raise UserError(
            f"--resume {resume}: {output} has gone on to {own[-1].name} already: --resume auto continues "
            "there; to train on from an older checkpoint give another --output"
        )
    return found


def check_earlier_run(output: Path, resume: str) -> None:
    """Raise UserError as `find` does, and where a new run would replace results whose checkpoints are gone."""
    found, left = find(output, resume), _results(output)
    if resume != "auto" or not left or found:
        return
    if _unsaved_steps(output) is None:
        raise UserError(
            f"{output} holds {', '.join(left[:3])} of an earlier run, but no checkpoint to continue it from: copy its "
            f"checkpoints/ there too, give another --output, or let --resume never start anew and move those to "
            f"{_free_folder(output)}"
        )


def set_aside_earlier_run(output: Path) -> str | None:
    """Move what is left of a run without checkpoints out of the way of a new one; return a line about it. Rank 0."""
    if not _results(output) or find(output, "auto"):
        return None
    steps, place = _unsaved_steps(output), _free_folder(output)
    place.mkdir()
    for name in (*_RESULTS, _METRICS, *_RECORDS):
        if os.path.lexists(output / name):
            os.replace(output / name, place / name)
    what = "the earlier run"
    if steps is not None:
        what = f"a run that ended after {steps:,} steps, before its first checkpoint"
    return f"{output} has no checkpoint of its own: the files of {what} are now in {place}"


def _results(output: Path) -> list[str]:
    return [name for name in (*_RESULTS, _METRICS) if os.path.lexists(output / name)]


def _free_folder(output: Path) -> Path:
    return next(place for n in count(1) if not os.path.lexists(place := output / f"earlier-{n}"))


def _unsaved_steps(output: Path) -> int | None:
    """Return the steps of a run that was killed before it could save any; None if it had been saved, or may have."""
    if not (output / _METRICS).is_file():
        return None
    try:
        path = output / "summary.json"
        summary = read_json(path, _MOST_BYTES) if path.exists() else {"steps": 0}
        interval = read_json(output / "run.json", _MOST_BYTES)["flags"]["save_interval"]
        steps = int(deque(({"step": 0}, *read_json_lines(output / _METRICS)), maxlen=1)[0]["step"])
        return steps if summary["steps"] == 0 and steps < interval else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

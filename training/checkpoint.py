"""Checkpoints: DeepSpeed's files beside a readable `run_state.json`, complete or not there at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from corpus.errors import UserError

_NAME = re.compile(r"step-(\d{8})")
STATE_FILE, LATEST_FILE = "run_state.json", "latest"


@dataclass
class RunState:
    """Where a run stands. `identity` is what a continued run must share with the interrupted one.

    `stale_evaluations` counts those since the best one; `alarms` names those that have been raised.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)

    def judge(self, loss: float) -> bool:
        """Take note of a validation loss; whether it is the best of the run. One from before the first step is none."""
        if self.step == 0:
            return False
        best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if best:
            self.best_loss, self.best_step, self.stale_evaluations = loss, self.step, 0
        else:
            self.stale_evaluations += 1
        return best

    def lost_patience(self, patience: int | None) -> str | None:
        """Why to stop if --patience is used up."""
        if patience is None or self.stale_evaluations < patience:
            return None
        best = "" if self.best_loss is None else f" than {self.best_loss:.3f} at step {self.best_step:,}"
        return f"no better validation loss{best} in {self.stale_evaluations} evaluations (--patience {patience})"


def save(engine: Any, folder: Path, state: RunState, keep_last: int) -> Path:
    """Write checkpoint `step-N` under `folder`; a collective call.

    It is written under another name, then renamed, then named in `latest`, so that a run cut off in the middle finds
    the one before.
    """
    name = f"step-{state.step:08d}"
    partial = f"{name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(folder / partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=partial, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(folder / partial, folder / name)
        beside = folder / f"{LATEST_FILE}.new"
        beside.write_text(name + "\n", encoding="utf-8")
        os.replace(beside, folder / LATEST_FILE)
        _prune(folder, keep_last)
    dist.barrier()
    return folder / name


def _prune(folder: Path, keep_last: int) -> None:
    for old in _complete(folder)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    whole = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(path for path in whole if (path / STATE_FILE).is_file())


def find(output: Path, resume: str) -> Path | None:
    """The checkpoint to continue from: the newest in the run's folder (`auto`), none (`never`), or the one given."""
    folder = output / "checkpoints"
    if resume == "auto":
        complete = _complete(folder)
        return complete[-1] if complete else None
    if resume == "never":
        if _complete(folder):
            raise UserError(f"{output} already holds a run and --resume never would overwrite it: give another "
                            "--output, or delete the folder")
        return None
    path = Path(resume)
    if (path / STATE_FILE).is_file():
        return path
    if complete := _complete(path / "checkpoints" if (path / "checkpoints").is_dir() else path):
        return complete[-1]
    raise UserError(f"--resume {resume}: no checkpoint there; give a folder such as "
                    "runs/NAME/checkpoints/step-00001000")


def read_state(checkpoint: Path) -> RunState:
    """The readable part of a checkpoint; UserError if it is damaged."""
    path = checkpoint / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete the folder {checkpoint} to continue from the "
                        "checkpoint before it") from None


def check_identity(state: RunState, identity: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to continue a run with another corpus, model or batch; the message lists what differs."""
    names = sorted(set(state.identity) | set(identity))
    different = [f"{name}: {state.identity.get(name)} then, {identity.get(name)} now" for name in names
                 if state.identity.get(name) != identity.get(name)]
    if different:
        raise UserError(f"{checkpoint} belongs to another run ({'; '.join(different)}): start with the same data and "
                        "flags, or give another --output")


def load(engine: Any, checkpoint: Path) -> None:
    """Restore weights, optimizer, loss scaler and schedule; a collective call."""
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if path is None:
        raise UserError(f"{checkpoint} could not be loaded: delete the folder to continue from the one before it")

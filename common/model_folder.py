"""Where a model is: found without loading anything, so that a wrong path is answered at once."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError


def find_model(checkpoint: Path, flag: str = "--checkpoint") -> Path:
    """Return the model folder of a run, or the folder itself if it is one; UserError if there is none."""
    if (checkpoint / "model").is_dir():
        return checkpoint / "model"
    if (checkpoint / "config.json").is_file() or (checkpoint / "model.safetensors").is_file():
        return checkpoint
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} does not exist: give {flag} the folder of a run, such as runs/NAME")
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is a file: give {flag} the folder that it is in")
    for run in checkpoint.parents[:2]:
        if (run / "model" / "config.json").is_file() and (run / "run.json").is_file():
            raise UserError(f"{checkpoint} holds no model: give {flag} {run}, the run that it is in")
    if (checkpoint / "manifest.json").is_file():
        raise UserError(f"{checkpoint} is a corpus of prepare.py and no model: give {flag} a run, such as runs/NAME")
    raise UserError(
        f"{checkpoint} has no model/ yet, which training writes when it first evaluates: wait for that, "
        "or give another run"
    )

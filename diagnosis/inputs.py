"""What is diagnosed: found by its folder, and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from diagnosis.measured_text import Text, open_text
from diagnosis.models import ModelUnderTest, load_model_under_test
from diagnosis.report.messages import Messages
from evaluation.run_record import RunRecord, find_corpus, is_run, read_run

# A model this small gains nothing from a second thread and waits for it: minutes on a machine with other work.
ONE_THREAD = 3_000_000


@dataclass(frozen=True)
class Reporter:
    """What is said along the way: `progress` before each part that takes seconds, and notes for the report."""

    messages: Messages
    show: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def progress(self, key: str, **values: Any) -> None:
        """Show what comes next."""
        self.show(self.messages(f"progress.{key}", **values))

    def note(self, key: str, **values: Any) -> None:
        """Keep a note for the report."""
        self.notes.append(self.messages(f"notes.{key}", **values))


@dataclass(frozen=True)
class Inputs:
    """What is diagnosed: a run or a model, and the text to measure it on; None for what is not there (yet)."""

    path: Path
    run: RunRecord | None
    model: ModelUnderTest | None
    text: Text | None
    vocab_size: int


def open_inputs(checkpoint: Path, data: Path | None, device: str, reporter: Reporter) -> Inputs:
    """Load what is to be diagnosed; UserError if there is no model and no record of one, or no text."""
    folder = _find_folder(checkpoint)
    run = read_run(folder) if is_run(folder) else None
    model = _load_model(folder, run, device, reporter)
    vocab_size = model.vocab_size if model else run.model.get("vocab_size") if run else None
    if not isinstance(vocab_size, int) or vocab_size < 2:
        raise UserError(
            f"{folder}: neither a model nor the size of its vocabulary is there yet: wait for the first evaluation"
        )
    return Inputs(checkpoint, run, model, _open_text(data, run, model, reporter), vocab_size)


def _find_folder(checkpoint: Path) -> Path:
    """Return the folder of the run or model; the model folder of a run stands for the run."""
    if not checkpoint.is_dir():
        problem = "is a file: give its folder" if checkpoint.exists() else "does not exist: give the folder of a run"
        raise UserError(f"--checkpoint {checkpoint} {problem}")
    if checkpoint.name == "model" and is_run(checkpoint.parent) and not is_run(checkpoint):
        return checkpoint.parent
    return checkpoint


def _load_model(folder: Path, run: RunRecord | None, device: str, reporter: Reporter) -> ModelUnderTest | None:
    """Load the folder's model; None for a run that has not saved one yet."""
    place = folder / "model" if run or (folder / "model" / "config.json").is_file() else folder
    has_config = (place / "config.json").is_file()
    if run is None and not has_config:
        raise UserError(
            f"--checkpoint {folder} is neither a run nor a model (it has no config.json): give runs/NAME or the folder "
            "of a Hugging Face model"
        )
    if run and not (has_config and any(place.glob("*.safetensors"))):
        reporter.note("no_model")
        return None
    reporter.progress("model")
    model = load_model_under_test(place, device)
    if model.active_parameters < ONE_THREAD:
        torch.set_num_threads(1)
    return model


def _open_text(
    data: Path | None, run: RunRecord | None, model: ModelUnderTest | None, reporter: Reporter
) -> Text | None:
    own = find_corpus(run) if run else None
    path = data or own
    if path is None:
        if run is None:
            raise UserError(
                "--data is missing: a model that is not a run of this project needs text to be measured on, a folder "
                "of prepare.py or a .jsonl file"
            )
        if run.corpus:
            reporter.note("no_text", corpus=run.corpus)
        else:
            reporter.note("no_corpus")
        return None
    reporter.progress("text")
    text = open_text(path, model, own, run.corpus_fingerprint if run else None)
    if run is None:
        reporter.note("seen")
    elif not text.is_own:
        reporter.note("other_text", name=text.name)
    if not len(text.held_out):
        reporter.note("no_held_out")
    return text

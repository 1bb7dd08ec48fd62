"""A diagnosis: from a model's or run's folder and its text to measurements, causes and what --json writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from diagnosis.decoding import DecodingComparison, choose_prompts, compare_settings, estimated_seconds, generate
from diagnosis.measured_text import Text, open_text
from diagnosis.measurements import Measurements, measure_model, measure_text
from diagnosis.models import ModelUnderTest, load_model_under_test
from diagnosis.report.messages import Messages
from diagnosis.result import VERSION, as_object
from diagnosis.rules.verdict import find_causes
from evaluation.documents import held_out_documents
from evaluation.held_out_prompts import GREEDY, SAMPLED
from evaluation.language_figures import measure_figures
from evaluation.minimal_pairs import PAIRS
from evaluation.repetition import measure_repetition
from evaluation.run_record import RunRecord, find_corpus, is_run, read_run
from model import GenerationError

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


def diagnose(
    checkpoint: Path,
    *,
    data: Path | None = None,
    language: str = "en",
    quick: bool = False,
    device: str = "auto",
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the object that `--json` writes and the pages show; UserError if there is nothing to measure.

    `data` replaces the run's own corpus, and `quick` leaves out the comparison of decoding settings. `show` gets a line
    before each part that takes seconds.
    """
    reporter = Reporter(Messages(language), show)
    folder, run, model, text = _open(checkpoint, data, device, reporter)
    _note_state(run, reporter)
    measured = Measurements(
        vocab_size=_vocab_size(folder, run, model),
        run=run,
        parameters=model.parameters if model else None,
        baselines=text.baselines if text else None,
    )
    comparison = _measure(measured, model, text, quick, reporter) if model and text else None
    return as_object(
        reporter.messages,
        checkpoint=checkpoint,
        m=measured,
        causes=find_causes(measured),
        comparison=comparison,
        figures=_language_figures(model, text, run, reporter) if model and measured.finite else None,
        model=model,
        text=text,
        notes=reporter.notes,
    )


def language_figures(
    checkpoint: Path,
    *,
    data: Path | None = None,
    language: str = "en",
    device: str = "auto",
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return what `--figures` prints: minimal pairs and bits a byte by position and length, and nothing else."""
    reporter = Reporter(Messages(language), show)
    _, run, model, text = _open(checkpoint, data, device, reporter)
    found = _language_figures(model, text, run, reporter) if model else None
    if found is None:
        raise UserError(f"{checkpoint}: {'; '.join(reporter.notes) or 'there is no held-out text'}: give --data")
    subject = {"path": str(checkpoint), "step": run.steps if run else None, "data": text.name if text else None}
    return {"version": VERSION, "language": reporter.messages.language, "subject": subject, "figures": found}


def _open(
    checkpoint: Path, data: Path | None, device: str, reporter: Reporter
) -> tuple[Path, RunRecord | None, ModelUnderTest | None, Text | None]:
    """Return the folder of the run or model, the run if it is one, its model, and the text to measure it on."""
    folder = _find_folder(checkpoint)
    run = read_run(folder) if is_run(folder) else None
    model = _load_model(folder, run, device, reporter)
    return folder, run, model, _open_text(data, run, model, reporter)


def _language_figures(
    model: ModelUnderTest | None, text: Text | None, run: RunRecord | None, reporter: Reporter
) -> dict[str, Any] | None:
    """Return the figures of evaluation/language_figures.py; None without held-out text or a finite model."""
    if model is None or text is None or not len(text.held_out):
        return None
    reporter.progress("figures")
    found = held_out_documents(text.held_out, bos_id=model.bos_id, eos_id=model.eos_id)
    start = model.bos_id if model.bos_id is not None else model.eos_id if model.eos_id >= 0 else None
    try:
        figures = measure_figures(
            found,
            model.logits,
            encode=model.encode,
            decode=model.decode,
            start_id=start,
            vocab_size=model.vocab_size,
            longest=min(run.seq_len if run else 512, model.positions),
            pairs=PAIRS if model.active_parameters < 2e8 or model.device.type != "cpu" else PAIRS // 4,
        )
    except FloatingPointError:
        return None
    return figures.as_object()


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


def _note_state(run: RunRecord | None, reporter: Reporter) -> None:
    """Note that a run is still training, and which preflight checks it had failed."""
    if run is None:
        return
    total = run.total_steps
    if total and run.steps < total and not run.summary:
        reporter.note("still_training", step=run.steps, total=total)
    for check in run.preflight or []:
        if check.get("level") == "fail":
            reporter.note("preflight_failed", text=check.get("text"))


def _vocab_size(folder: Path, run: RunRecord | None, model: ModelUnderTest | None) -> int:
    size = model.vocab_size if model else run.model.get("vocab_size") if run else None
    if not isinstance(size, int) or size < 2:
        raise UserError(
            f"{folder}: neither a model nor the size of its vocabulary is there yet: wait for the first evaluation"
        )
    return size


def _measure(
    m: Measurements, model: ModelUnderTest, text: Text, quick: bool, reporter: Reporter
) -> DecodingComparison | None:
    """Fill in all that takes time, the cheapest first, and return the comparison of decoding settings."""
    reporter.progress("losses")
    try:
        measure_model(m, model, text, m.run)
    except FloatingPointError:
        m.finite = False
        return None
    reporter.progress("data")
    measure_text(m, text, model.bos_id, model.eos_id)
    if not len(text.held_out):
        return None
    prompts = choose_prompts(text, model)
    if not prompts.prompts:
        reporter.note("no_prompts")
        return None
    reporter.progress("generation", count=len(prompts.prompts))
    m.true = measure_repetition(prompts.prompts, prompts.continuations)
    started = time.perf_counter()
    try:
        sampled, greedy = generate(model, prompts, SAMPLED), generate(model, prompts, GREEDY)
    except GenerationError:
        m.finite = False
        return None
    m.sampled, m.greedy = sampled.metrics, greedy.metrics
    if quick:
        return None
    reporter.progress("grid", seconds=estimated_seconds(prompts, (time.perf_counter() - started) / 2))
    comparison = compare_settings(model, prompts)
    if comparison.left_out:
        count = len(comparison.grid)
        reporter.note("grid_cut", count=count, all=count + comparison.left_out)
    return comparison

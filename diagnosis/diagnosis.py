"""A diagnosis: from a model's or run's folder and its text to measurements, causes and what --json writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.training_text import TrainingText
from diagnosis.decoding import DecodingComparison, choose_prompts, compare_settings, estimated_seconds, generate
from diagnosis.inputs import Inputs, Reporter, open_inputs
from diagnosis.measurements import Measurements, measure_model, measure_text
from diagnosis.report.messages import Messages
from diagnosis.result import about_inputs, as_object
from diagnosis.rules.verdict import find_causes
from evaluation.documents import held_out_documents
from evaluation.held_out_prompts import GREEDY, SAMPLED
from evaluation.language_figures import measure_figures
from evaluation.minimal_pairs import PAIRS
from evaluation.repetition import measure_repetition
from evaluation.run_record import RunRecord
from model import GenerationError

VERSION = 1
UNKNOWN_SHOWN = 20  # characters


def diagnose(
    checkpoint: Path,
    *,
    data: Path | None = None,
    language: str = "en",
    quick: bool = False,
    figures_alone: bool = False,
    device: str = "auto",
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the object that `--json` writes and the pages show; UserError if there is nothing to measure.

    `data` replaces the run's own corpus, `quick` leaves out the comparison of decoding settings, and `figures_alone`
    all but minimal pairs and bits a byte by position and length. `show` gets a line before each part that takes
    seconds.
    """
    reporter = Reporter(Messages(language), show)
    inputs = open_inputs(checkpoint, data, device, reporter)
    head = {"version": VERSION, "language": reporter.messages.language, "subject": about_inputs(inputs)}
    if figures_alone:
        found = _language_figures(inputs, reporter)
        if found is None:
            raise UserError(f"{checkpoint}: {'; '.join(reporter.notes) or 'there is no held-out text'}: give --data")
        return head | {"figures": found}
    _note_state(inputs.run, reporter)
    measured = Measurements(inputs.vocab_size, inputs.run, inputs.text.baselines if inputs.text else None)
    comparison = _measure(measured, inputs, quick, reporter)
    figures = _language_figures(inputs, reporter) if measured.finite else None
    causes = find_causes(measured)
    parts = as_object(reporter.messages, inputs, measured, causes, comparison)
    return head | parts | {"figures": figures, "notes": reporter.notes}


def _note_state(run: RunRecord | None, reporter: Reporter) -> None:
    """Note that a run is still training, which checks it had failed, and what its model cannot know of its prompts."""
    if run is None:
        return
    total = run.total_steps
    if total and run.steps < total and not run.summary:
        reporter.note("still_training", step=run.steps, total=total)
    for check in run.preflight or []:
        if check.get("level") == "fail":
            reporter.note("preflight_failed", text=check.get("text"))
    known, prompts = TrainingText.read(run.folder / "model"), "".join(str(row.get("prompt")) for row in run.samples)
    if known and (unknown := known.unknown(prompts)):
        reporter.note("unknown_characters", characters="、".join(unknown[:UNKNOWN_SHOWN]))


def _measure(m: Measurements, inputs: Inputs, quick: bool, reporter: Reporter) -> DecodingComparison | None:
    """Fill in all that takes time, the cheapest first, and return the comparison of decoding settings."""
    model, text = inputs.model, inputs.text
    if model is None or text is None:
        return None
    reporter.progress("losses")
    try:
        measure_model(m, model, text)
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


def _language_figures(inputs: Inputs, reporter: Reporter) -> dict[str, Any] | None:
    """Return the figures of evaluation/language_figures.py; None without held-out text or a finite model."""
    model, text, run = inputs.model, inputs.text, inputs.run
    if model is None or text is None or not len(text.held_out):
        return None
    reporter.progress("figures")
    start = model.bos_id if model.bos_id is not None else model.eos_id if model.eos_id >= 0 else None
    try:
        figures = measure_figures(
            held_out_documents(text.held_out, bos_id=model.bos_id, eos_id=model.eos_id),
            model.logits,
            encode=model.encode,
            decode=model.decode,
            start_id=start,
            vocab_size=model.vocab_size,
            longest=min(run.seq_len if run else 512, model.positions),
            pairs=PAIRS if model.is_fast else PAIRS // 4,
        )
    except FloatingPointError:
        return None
    return asdict(figures)

"""A diagnosis: a model and its text in, the facts and the causes in words out, as one object that JSON can hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from diagnosis import measurements as measures
from diagnosis import rules as rules
from diagnosis.measurements import Evidence, Written
from diagnosis.models import Subject, load_subject
from diagnosis.report.messages import WORDS, Words
from diagnosis.rules import Cause
from diagnosis.run_record import Curve, RunRecord, find_corpus, is_run, read_run
from diagnosis.text import Text, open_text
from evaluation.held_out_prompts import DecodingSettings, HeldOutPrompts
from evaluation.repetition import RepetitionMetrics, measure_repetition
from model import GenerationError

VERSION = 1
FIGURES = ("repetition", "copying", "distinct_2", "loops")
CURVES = {
    "train_loss": ("train", "loss"),
    "val_loss": ("val", "loss"),
    "lr": ("train", "lr"),
    "grad_norm": ("train", "grad_norm"),
    "loss_scale": ("train", "loss_scale"),
    "repetition": ("val", "repetition"),
    "true_repetition": ("val", "true_repetition"),
    "loops": ("val", "loops"),
    "update_ratio": ("train", "update_ratio"),
    "unchanged": ("train", "unchanged"),
}

# Greedy first, then what people use most: a model too slow for all of them gets the first ones
PENALTIES, TOP_PS, TEMPERATURES = (1.0, 1.1, 1.3), (0.9, 1.0), (0.7, 1.0, 0.5)
GRID = [
    *(DecodingSettings(0.0, 1.0, penalty) for penalty in PENALTIES),
    *(
        DecodingSettings(temperature, top_p, penalty)
        for penalty in PENALTIES
        for temperature in TEMPERATURES
        for top_p in TOP_PS
    ),
]
GRID_PROMPTS, GRID_TOKENS, GRID_SECONDS, FEWEST_SETTINGS = 16, 48, 20.0, 6

# A model this small gains nothing from a second thread, and waits for it: minutes on a machine with other work
ONE_THREAD = 3_000_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to diagnose: `data` overrides the run's corpus; `quick` leaves the comparison of decodings out."""

    checkpoint: Path
    data: Path | None = None
    language: str = "en"
    quick: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Case:
    """What a diagnosis is made of, all that it found along the way."""

    request: Request
    words: Words
    run: RunRecord | None
    subject: Subject | None
    text: Text | None
    evidence: Evidence
    probe: HeldOutPrompts | None = None
    grid: tuple[Written, ...] = ()
    notes: tuple[str, ...] = ()


def diagnose(request: Request, say: Say) -> dict[str, Any]:
    """The object that `--json` writes and the pages show; UserError where there is nothing to judge.

    `say` gets a line before each part that takes seconds.
    """
    words = Words(request.language)
    case = _examine(_open(request, words, say), say)
    return _result(case, rules.judge(case.evidence))


# --- opening ---


def _open(request: Request, words: Words, say: Say) -> Case:
    folder = request.checkpoint
    if not folder.is_dir():
        what = "is a file: give the folder that it is in" if folder.exists() else "does not exist: give a run's folder"
        raise UserError(f"--checkpoint {folder} {what}")
    if folder.name == "model" and is_run(folder.parent) and not is_run(folder):
        folder = folder.parent
    run = read_run(folder) if is_run(folder) else None
    model = folder / "model" if run or (folder / "model" / "config.json").is_file() else folder
    if run is None and not (model / "config.json").is_file():
        raise UserError(
            f"--checkpoint {folder} holds neither a run nor a model (no config.json): give runs/NAME or "
            "the folder of a Hugging Face model"
        )
    notes = []
    subject = None
    if run is None or ((model / "config.json").is_file() and any(model.glob("*.safetensors"))):
        say(words("doing_model"))
        subject = load_subject(model, request.device, "run" if run else "huggingface")
        if subject.active_parameters < ONE_THREAD:
            torch.set_num_threads(1)
    else:
        notes.append(words("note_no_model"))
    text = _open_text(request, words, run, subject, notes, say)
    total = run.total_steps if run else None
    if run and total and run.steps < total and not run.summary:
        notes.append(words("note_going_on", step=run.steps, total=total))
    notes += [
        words("preflight_failed", text=check.get("text"))
        for check in (run.preflight or [] if run else [])
        if check.get("level") == "fail"
    ]
    vocab = subject.vocab_size if subject else run.model.get("vocab_size") if run else None
    if not isinstance(vocab, int) or vocab < 2:
        raise UserError(
            f"{folder}: neither a model nor the size of its vocabulary is there yet: wait for the first evaluation"
        )
    evidence = Evidence(
        vocab_size=vocab,
        run=run,
        parameters=subject.parameters if subject else None,
        ladder=text.ladder if text else None,
    )
    return Case(request, words, run, subject, text, evidence, notes=tuple(notes))


def _open_text(
    request: Request, words: Words, run: RunRecord | None, subject: Subject | None, notes: list[str], say: Say
) -> Text | None:
    own = find_corpus(run) if run else None
    path = request.data or own
    if path is None:
        if run is None:
            raise UserError(
                "--data is missing: a model that is no run of ours needs text to be judged on, a folder of "
                "prepare.py or a .jsonl file"
            )
        notes.append(words("note_no_text", corpus=run.corpus) if run.corpus else words("note_no_corpus"))
        return None
    say(words("doing_text"))
    text = open_text(path, subject, own, run.corpus_fingerprint if run else None)
    if run and not text.is_own:
        notes.append(words("note_other_text", name=text.name))
    if run is None:
        notes.append(words("note_seen"))
    if not len(text.held_out):
        notes.append(words("note_no_held_out"))
    return text


# --- measuring ---


def _examine(case: Case, say: Say) -> Case:
    """Everything that takes time, cheapest first."""
    if case.subject is None or case.text is None:
        return case
    case = _measure(case, case.subject, case.text, say)
    if not case.evidence.finite or not len(case.text.held_out):
        return case
    return _write(case, case.subject, case.text, say)


def _measure(case: Case, subject: Subject, text: Text, say: Say) -> Case:
    run, words = case.run, case.words
    seq_len = min(run.seq_len if run else 512, subject.positions)
    if run is None or not text.is_own or not text.held_out.num_rows(seq_len):  # else as training evaluates
        seq_len = min(seq_len, max(8, len(text.held_out) // 4 or 512))
    say(words("doing_losses"))
    rows = measures.own_rows(text, run, seq_len)
    evidence = case.evidence
    unseen = measures.sequences(subject, text.held_out, seq_len, measures.HELD_OUT_TOKENS, rows)
    seen = measures.sequences(subject, text.train, seq_len, measures.TRAIN_TOKENS)
    try:
        held_out, train = measures.losses(subject, unseen, len(rows) if rows else None), measures.losses(subject, seen)
    except FloatingPointError:
        return replace(case, evidence=replace(evidence, finite=False))
    say(words("doing_data"))
    same = run is not None and text.is_own and seq_len == run.seq_len
    documents, near = (text.report or {}).get("documents"), (text.report or {}).get("duplicates", {}).get("near")
    return replace(
        case,
        evidence=replace(
            evidence,
            held_out=held_out,
            train=train,
            recorded_val_loss=run.best[1] if run and run.best and same else None,
            own_text=text.is_own or run is None,
            weights=measures.weights(subject, run),
            router=measures.router(subject, unseen),
            data=measures.data(text, subject.begin_id, subject.end_id),
            near_duplicates=near / documents if near and documents and text.settings.get("dedup") != "near" else None,
            greedy_by_default=subject.default_decoding is not None and subject.default_decoding.greedy,
        ),
    )


def _write(case: Case, subject: Subject, text: Text, say: Say) -> Case:
    words = case.words
    probe = measures.held_out_probe(text, subject)
    if not probe.prompts:
        return replace(case, notes=(*case.notes, words("note_no_prompts")))
    say(words("doing_writing", count=len(probe.prompts)))
    evidence, written = measures.with_writing(case.evidence, subject, probe)
    case = replace(case, evidence=evidence, probe=probe.subset(GRID_PROMPTS, GRID_TOKENS))
    if case.request.quick or not written:
        return case
    return _compare(case, subject, sum(part.seconds for part in written) / len(written), say)


def _compare(case: Case, subject: Subject, seconds: float, say: Say) -> Case:
    """The grid of decodings, as far as GRID_SECONDS reach; `seconds` is what one writing of the whole probe took."""
    assert case.probe is not None
    each = seconds * len(case.probe.prompts) * case.probe.new_tokens / (32 * 64)
    say(case.words("doing_grid", seconds=min(GRID_SECONDS, max(1.0, each * len(GRID)))))
    started, grid = time.perf_counter(), []
    for how in GRID:
        if len(grid) >= FEWEST_SETTINGS and time.perf_counter() - started > GRID_SECONDS:
            break
        try:
            grid.append(measures.write(subject, case.probe, how))
        except GenerationError:
            break
    notes = case.notes
    if len(grid) < len(GRID):
        notes = (*notes, case.words("note_grid_cut", count=len(grid), all=len(GRID)))
    return replace(case, grid=tuple(grid), notes=notes)


# --- the result ---


def _result(case: Case, found: list[Cause]) -> dict[str, Any]:
    run, text, evidence = case.run, case.text, case.evidence
    decoding = _decoding(case)
    return _finite(
        {
            "version": VERSION,
            "language": case.words.language,
            "subject": _subject(case),
            # None: whoever wrote nothing cannot be called a parrot, nor acquitted
            "verdict": {
                "parrots": rules.parrots(evidence) if evidence.sampled else None,
                "healthy": _healthy(evidence, found),
                "headline": _headline(case, found),
            },
            "ladder": _ladder(case),
            "repetition": _repetition(case),
            "causes": [_cause(case, cause, decoding) for cause in found],
            "offsets": [
                {"offset": offset, "nats": nats}
                for offset, nats in (evidence.held_out.offsets if evidence.held_out else {}).items()
            ],
            "curves": {name: _curve(run.curve(*source)) if run else [] for name, source in CURVES.items()},
            "expert_load": _expert_load(run),
            "samples": [
                {"step": row["step"], "prompt": str(row.get("prompt", "")), "text": row["text"]}
                for row in (run.samples if run else [])
            ],
            "decoding": decoding,
            "corpus": text.report if text else None,
            "alarms": run.alarms if run else [],
            "preflight": run.preflight if run else None,
            "notes": list(case.notes),
        }
    )


def _subject(case: Case) -> dict[str, Any]:
    run, subject = case.run, case.subject
    return {
        "path": str(case.request.checkpoint),
        "kind": "run" if run else "huggingface",
        "parameters": subject.parameters if subject else None,
        "vocab_size": case.evidence.vocab_size,
        "step": run.steps if run else None,
        "total_steps": run.total_steps if run else None,
        "tokens": run.tokens if run else None,
        "data": case.text.name if case.text else None,
    }


def _healthy(evidence: Evidence, found: list[Cause]) -> bool | None:
    """None where nothing was found and nothing was written: too little was looked at to say so."""
    return False if found else True if evidence.sampled else None


def _headline(case: Case, found: list[Cause]) -> str:
    words, cause = case.words, case.words(_foreign(case, found[0].id)) if found else None
    if case.subject is None:
        return words("headline_no_model", cause=cause) if cause else words("headline_no_model_healthy")
    if case.evidence.sampled is None:
        return words("headline_unwritten_cause", cause=cause) if cause else words("headline_unwritten")
    parrots = rules.parrots(case.evidence)
    if cause:
        return words("headline_parrots_cause" if parrots else "headline_cause", cause=cause)
    if parrots:
        return words("headline_parrots")
    return words("headline_healthy_loops" if rules.greedy_loops(case.evidence) else "headline_healthy")


def _ladder(case: Case) -> dict[str, Any]:
    words, ladder, loss = case.words, case.evidence.ladder, case.evidence.loss
    train = case.evidence.train.loss if case.evidence.train else None

    def place(nats: float | None) -> dict[str, Any] | None:
        return None if nats is None else {"nats": nats, "bits_per_byte": ladder.bits_per_byte(nats) if ladder else None}

    stands = ladder.compare(loss) if ladder and loss is not None else None
    rungs = [
        {"name": name, "label": words(f"rung_{name}"), **(place(nats) or {})}
        for name, nats in (ladder.losses().items() if ladder else ())
    ]
    return {
        "rungs": rungs,
        "model": place(loss),
        "train": place(train),
        "stands": stands,
        "sentence": words(f"stands_{stands}" if stands else "no_loss" if ladder else "no_ladder"),
    }


def _repetition(case: Case) -> list[dict[str, Any]]:
    evidence = case.evidence
    rows = (("true", evidence.true), ("sampled", evidence.sampled), ("greedy", evidence.greedy))
    return [
        {"who": who, "label": case.words(f"who_{who}"), **_figures(figures)}
        for who, figures in rows
        if figures is not None
    ]


def _figures(figures: RepetitionMetrics) -> dict[str, float | None]:
    return {name: getattr(figures, name) for name in FIGURES}


def _cause(case: Case, cause: Cause, decoding: dict[str, Any] | None) -> dict[str, Any]:
    words = case.words
    settings = _settings(words, DecodingSettings(0.7, 0.9, 1.1))
    if decoding:
        settings = _settings(words, case.grid[decoding["best"]].how)
    return {
        "id": cause.id,
        "title": words(_foreign(case, cause.id)),
        "confidence": cause.confidence,
        "evidence": [words(key, **values) for key, values in cause.evidence],
        "next": words(_foreign(case, f"{cause.id}_next"), settings=settings),
    }


def _foreign(case: Case, key: str) -> str:
    """The key of what is said of a model that no run of ours made, where that is something else."""
    return f"{key}_foreign" if case.run is None and f"{key}_foreign" in WORDS else key


def _settings(words: Words, how: DecodingSettings) -> str:
    return words("settings_greedy" if how.greedy else "settings", **asdict(how))


def _decoding(case: Case) -> dict[str, Any] | None:
    """The grid with each setting's figures and one text, and the setting whose figures are nearest to true text's."""
    probe, subject = case.probe, case.subject
    if not case.grid or probe is None or subject is None:
        return None
    true = measure_repetition(probe.prompts, probe.continuations)
    best = min(range(len(case.grid)), key=lambda place: _distance(case.grid[place].figures, true))
    return {
        "grid": [
            {**asdict(part.how), **_figures(part.figures), "sample": subject.decode(part.outputs[0])}
            for part in case.grid
        ],
        "true": _figures(true),
        "best": best,
        "prompt": subject.decode(probe.prompts[0]),
        "sentence": case.words("grid_best", settings=_settings(case.words, case.grid[best].how)),
    }


def _distance(figures: RepetitionMetrics, true: RepetitionMetrics) -> float:
    """Sum of the figures' differences, all of them shares; a figure that is missing counts as wholly wrong."""
    pairs = ((getattr(figures, name), getattr(true, name)) for name in FIGURES)
    return sum(1.0 if a is None else abs(a - b) for a, b in pairs if b is not None)


def _expert_load(run: RunRecord | None) -> dict[str, Any] | None:
    rows = [row for row in (run.train if run else []) if _is_load(row.get("expert_load"))]
    if not rows:
        return None
    layers = len(rows[0]["expert_load"])
    rows = [row for row in rows if len(row["expert_load"]) == layers]
    return {
        "steps": [row["step"] for row in rows],
        "layers": [[row["expert_load"][layer] for row in rows] for layer in range(layers)],
    }


def _is_load(value: Any) -> bool:
    """Shares of experts, layer by layer."""
    return isinstance(value, list) and all(
        isinstance(layer, list) and all(isinstance(share, (int, float)) for share in layer) for layer in value
    )


def _curve(points: Curve) -> list[list[float]]:
    return [[step, value] for step, value in points]


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

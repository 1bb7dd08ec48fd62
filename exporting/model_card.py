"""The model card: README.md of a Hugging Face folder, written from what a run and its corpus recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.errors import UserError
from corpus.manifest import Manifest
from corpus.report import CorpusReport
from evaluation.run_record import Row, RunRecord, find_corpus, finite, read_run
from model import ModelConfig, count_parameters

FILE_NAME = "README.md"
MARK = "<!-- written by bufudu from the run's records; a card without this line is never replaced -->"
CURVE_ROWS = 8
_SCRIPTS_OF_LANGUAGES = {"zh": "zh", "zh-Hans": "zh", "zh-Hant": "zh", "ja": "ja", "ko": "ko", "latin": "en"}
_REPETITION = {
    "repetition": "4-grams that repeat an earlier one of the text",
    "copying": "4-grams copied from the prompt",
    "distinct_2": "2-grams that are unique",
    "greedy_repetition": "4-grams that repeat an earlier one, greedy decoding",
    "loops": "texts that end in a loop, greedy decoding",
}
_Record = TypeVar("_Record", Manifest, CorpusReport)


def model_card(name: str, config: ModelConfig, run_folder: Path | None, diagnosis: Row) -> str:
    """Return the text of the card; what was not recorded, or cannot be read, is left out."""
    try:
        run = read_run(run_folder) if run_folder else None
    except UserError:
        run = None
    corpus = find_corpus(run) if run else None
    manifest, report = _read(Manifest, corpus), _read(CorpusReport, corpus)
    shares = report.languages.items() if report else ()
    languages = dict.fromkeys(_SCRIPTS_OF_LANGUAGES.get(script) for script, share in shares if share > 0.05)
    parameters, active = count_parameters(config)
    best = next((row for row in run.val if run.best and row["step"] == run.best[0]), None) if run else None
    parts = ((diagnosis.get("verdict"), "headline"), (diagnosis.get("decoding"), "sentence"))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,  # else a wrong name counts as false, and a sentence says the opposite
    )
    environment.filters |= {"comma": "{:,}".format, "amount": _amount, "fixed": _fixed, "cell": _cell}
    return environment.get_template("model_card.md.j2").render(
        name=name,
        mark=MARK,
        config=config,
        parameters=parameters,
        active=active,
        run=run,
        tokens=(best or {}).get("tokens") or (run and run.tokens),
        manifest=manifest,
        report=report,
        languages=[language for language in languages if language] or ["zh"],
        recipe=_recipe(run) if run else (),
        curve=_curve(run, best) if run else [],
        best=best,
        repetition=list(_repetition(best or {})),
        findings=[part[key] for part, key in parts if isinstance(part, dict) and isinstance(part.get(key), str)],
    )


def _read(kind: type[_Record], folder: Path | None) -> _Record | None:
    try:
        return kind.read(folder) if folder else None
    except UserError:
        return None


def _recipe(run: RunRecord) -> Iterator[tuple[str, Any]]:
    config, summary = run.ds_config, run.summary
    precision = next((kind for kind in ("fp16", "bf16") if (config.get(kind) or {}).get("enabled")), "fp32")
    batch, seconds = config.get("train_batch_size"), summary.get("seconds")
    for label, key in (("optimizer", "optimizer"), ("schedule", "scheduler")):
        part = config.get(key) or {}
        given = ", ".join(f"{name} {value}" for name, value in (part.get("params") or {}).items() if value is not None)
        yield label, f"{part.get('type')} ({given})" if given else part.get("type")
    yield "batch", f"{batch:,} rows of {run.seq_len} tokens" if isinstance(batch, int) else None
    yield "gradient clipping", config.get("gradient_clipping") or "none"
    yield "precision", f"{precision}, ZeRO-{(config.get('zero_optimization') or {}).get('stage', 0)}"
    yield "steps", f"{run.steps:,} of {run.total_steps:,}" if run.total_steps else f"{run.steps:,}"
    yield "tokens", f"{run.tokens:,}" if run.tokens else None
    yield "time", f"{seconds / 60:,.1f} minutes of training" if finite(seconds) else None
    yield "ended because", summary.get("reason")


def _curve(run: RunRecord, best: Row | None) -> list[Row]:
    """Return some evaluations spread over the run, that of the saved weights among them."""
    rows = [row for row in run.val if finite(row.get("loss"))]
    last = len(rows) - 1
    chosen = {i * last // (CURVE_ROWS - 1) for i in range(CURVE_ROWS)}
    return [row for place, row in enumerate(rows) if place in chosen or row is best]


def _repetition(row: Row) -> Iterator[tuple[str, str, str]]:
    for key, meaning in _REPETITION.items():
        figure, true = row.get(key), row.get(f"true_{key}")
        if finite(figure):
            yield meaning, f"{figure:.1%}", f"{true:.1%}" if finite(true) else ""


def _amount(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _fixed(value: Any) -> str:
    return f"{value:.3f}" if finite(value) else ""


def _cell(value: object) -> str:
    """Return what may stand in a cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")

"""A Hugging Face folder that was made by an earlier version, brought up to date in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.chat_template import FILE_NAME as CHAT_TEMPLATE
from common.chat_template import read_chat_template
from common.errors import UserError
from common.files import read_object, replace_files
from corpus.tokenizer import write_hf_tokenizer
from evaluation.opened_model import open_own
from evaluation.run_record import Row, run_of
from exporting import model_card
from model import ModelConfig
from model.hf import GENERATION_CONFIG, generation_config


def complete(folder: Path, diagnosis_file: Path | None = None) -> list[str]:
    """Write what a model's folder lacks, and return a line for each file: what became of it.

    The weights and config.json are read but never written. A chat template or a card of another hand stays. UserError
    if the folder holds no model or cannot be written; then every file is as it was.
    """
    config = open_own(folder)[0].config
    run = run_of(folder)
    diagnosis = _diagnosis(diagnosis_file, run)
    texts = dict(_tokenizer_files(folder))
    texts[CHAT_TEMPLATE] = read_chat_template(folder) or texts[CHAT_TEMPLATE]
    texts[GENERATION_CONFIG] = json.dumps(_generation_config(folder, config, diagnosis), indent=2) + "\n"
    card = _card(folder, config, run, diagnosis)
    if card:
        texts[model_card.FILE_NAME] = card
    changed = {name: text for name, text in texts.items() if _text(folder / name) != text}
    try:
        if changed:
            replace_files({folder / name: _writer(text) for name, text in changed.items()})
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"{folder} could not be written ({why}): every file there is as it was") from None
    names = sorted({*texts, model_card.FILE_NAME})
    return [f"{folder / name}: {'written' if name in changed else 'as it was'}" for name in names]


def write_card(folder: Path, run: Path, config: ModelConfig) -> None:
    """Write the card of a run's model, unless somebody else wrote one; OSError if the disk is full."""
    if text := _card(folder, config, run, _diagnosis(None, run)):
        replace_files({folder / model_card.FILE_NAME: _writer(text)})


def _tokenizer_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of the tokenizer as they are written today; a template that is there already stays."""
    beside = folder.with_name(folder.name + ".tokenizer.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_hf_tokenizer(folder / "tokenizer.json", beside)
        for path in sorted(beside.iterdir()):
            yield path.name, path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{beside} could not be written ({error.strerror or error}): make room there") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _generation_config(folder: Path, config: ModelConfig, diagnosis: Row) -> Row:
    """Return the marks, and the sampling settings of the diagnosis or else those that are there."""
    marks = generation_config(config)
    decoding = diagnosis.get("decoding") or {}
    grid, best = decoding.get("grid") or [], decoding.get("best")
    if not isinstance(best, int) or not 0 <= best < len(grid):
        return read_object(folder / GENERATION_CONFIG) | marks
    settings = grid[best]
    if settings.get("temperature") == 0:
        return marks | {"do_sample": False, "repetition_penalty": settings.get("repetition_penalty", 1.0)}
    names = ("temperature", "top_p", "repetition_penalty")
    return marks | {"do_sample": True, "top_k": 0} | {name: settings[name] for name in names if name in settings}


def _diagnosis(given: Path | None, run: Path | None) -> Row:
    """Return the diagnosis in a file, or in the run's diagnosis.json if there is one; UserError for a given one."""
    path = given or (run / "diagnosis.json" if run else None)
    found = read_object(path) if path else {}
    if given and "verdict" not in found:
        raise UserError(f"--diagnosis {given} is no output of diagnose.py --json: give that file")
    return found


def _card(folder: Path, config: ModelConfig, run: Path | None, diagnosis: Row) -> str | None:
    """Return the text of the card, None if there is one of another hand."""
    there = _text(folder / model_card.FILE_NAME)
    if there is not None and model_card.MARK not in there:
        return None
    return model_card.model_card((run or folder).resolve().name, config, run, diagnosis)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _writer(text: str) -> Any:
    return lambda path: path.write_text(text, encoding="utf-8")

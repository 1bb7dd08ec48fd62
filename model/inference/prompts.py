"""Prompts as users write them: plain text with one a line, or JSON Lines."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it came from, for messages."""

    text: str
    source: str


def read_prompts(path: Path | None) -> list[Prompt]:
    """Return the prompts of a file, or of standard input; raise UserError if there is none or one is broken."""
    source = str(path) if path else "standard input"
    if path is None and sys.stdin is None:
        raise UserError("nothing to read prompts from: give --prompt TEXT or --prompts FILE")
    try:
        data = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): give --prompts a file of prompts") from None
    read = _read_json if source.endswith(".jsonl") else _read_text
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    prompts = [
        Prompt(read(line, f"{source}:{number}"), f"{source}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{source} holds no prompt: write one a line")
    return prompts


def _read_text(line: bytes, source: str) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8: convert the text, with iconv for instance") from None


def _read_json(line: bytes, source: str) -> str:
    try:
        record = json.loads(_read_text(line, source))
    except (ValueError, RecursionError):
        raise UserError(f'{source} is broken JSON: write an object a line, such as {{"prompt": "从前"}}') from None
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{source} has no text under "prompt" or "text"')
    return text

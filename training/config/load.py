"""Reading a DeepSpeed JSON file, and the changes that `--set` makes to it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.files import json_fault, printable, read_text
from training.config.problems import show

_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")
_MOST_SHOWN = 120  # characters of what is wrong
_MOST_BYTES = 2**20  # DeepSpeed's own files have a thousandth of it
_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*|/\*[\s\S]*?\*/")
_LAST_COMMA = re.compile(rf"{_STRING}|,(?=\s*[}}\]])")
_DEEPEST = 30  # DeepSpeed's own files are 4 deep; without a limit a hostile file ends in a RecursionError somewhere
_TOO_DEEP = f"blocks within blocks, more than {_DEEPEST} deep"
_MOST_BYTES_RELAXED = 2**14  # the reader for comments is in Python: a second for so many
# What stands where the JSON ends to be valid, and what to say of it
_SLIPS = (
    (("#",), " Comments begin with //."),
    (("True", "False", "None"), " JSON writes true, false, null."),
)


class _NotSense(Exception):
    """JSON that can be read and means nothing."""


def load(path: Path, overrides: Sequence[str] = ()) -> dict:
    """Return the file's content with each `a.b.c=value` of `overrides` put in; nothing is resolved or checked yet."""
    config = _parse(_read(path), path)
    _check_depth(config, path)
    problems = [problem for override in overrides if (problem := _override(config, override))]
    if problems:
        raise UserError("\n".join(problems))
    _check_depth(config, path)
    return config


def _check_depth(config: dict, path: Path) -> None:
    layer: list = [config]
    for _ in range(_DEEPEST):
        layer = [inner for outer in layer for inner in (outer.values() if isinstance(outer, dict) else outer)]
        layer = [inner for inner in layer if isinstance(inner, (dict, list))]
    if layer:
        raise UserError(f"{path}: {_TOO_DEEP}.")


def _read(path: Path) -> str:
    try:
        return read_text(path, _MOST_BYTES, "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.{_there_are(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _there_are(path: Path) -> str:
    """List the files that the user may have meant: beside the missing one, else in ds_configs/."""
    for folder in (path.parent, Path("ds_configs")):
        found = sorted(folder.glob("*.json"))
        if found:
            names = {file.stem: file for file in found}
            close = difflib.get_close_matches(path.stem, names, n=1)
            hint = f" Did you mean {names[close[0]]}?" if close else ""
            return f"{hint} In {folder}/ there are: {', '.join(file.name for file in found)}."
    return ""


def _parse(text: str, path: Path) -> dict:
    try:
        config = _relaxed_json(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UserError(f"{path}: the file is empty; ds_configs/ holds some to copy.") from None
        where, after = f"{path}, line {error.lineno}, column {error.colno}", text[error.pos :].lstrip()
        slip = next((hint for starts, hint in _SLIPS if after.startswith(starts)), "")
        raise UserError(f"{where}: not valid JSON: {json_fault(error)}.{slip}") from None
    except RecursionError:
        raise UserError(f"{path}: {_TOO_DEEP}.") from None
    except (_NotSense, ValueError) as error:  # a key twice, NaN, a number of thousands of digits
        raise UserError(f"{path}: {printable(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold one block in {{ }}, as DeepSpeed's documentation shows.")
    return config


def _relaxed_json(text: str) -> object:
    """Read JSON, with comments and commas after the last entry, as DeepSpeed does.

    A JSONDecodeError is about what is wrong with it beside these.
    """
    try:
        return _json(text)
    except json.JSONDecodeError as error:
        if not text.strip() or len(text) > _MOST_BYTES_RELAXED:
            raise
        import json5  # only a file that needs it waits for it

        with suppress(ValueError, RecursionError):
            return json5.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _json(_blank(_LAST_COMMA, _blank(_COMMENT, text)))
        raise error


def _blank(what: re.Pattern[str], text: str) -> str:
    """Return the text with spaces in place of what is found outside of strings, so that all else stays in its place."""
    return what.sub(lambda found: found[0] if found[0][0] == '"' else re.sub(r"[^\n]", " ", found[0]), text)


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Build a block; Python itself would keep the last of two equal keys and say nothing."""
    block: dict[str, object] = {}
    for key, value in pairs:
        if key in block:
            raise _NotSense(f'the key "{key}" stands twice in one block; keep one of them.')
        block[key] = value
    return block


def _no_constant(name: str) -> float:
    raise _NotSense(f"{name} is not valid in JSON.")


def _override(config: dict, override: str) -> str | None:
    """Put one `a.b.c=value` into `config`; return what is wrong with it, if something is."""
    path, equals, text = override.partition("=")
    path, written = path.strip(), f"--set {printable(override, _MOST_SHOWN)}"
    if not equals or not _KEY.fullmatch(path) or not path.isprintable():
        return f"{written}: write it as key.of.the.file=value, e.g. --set optimizer.params.lr=3e-4"
    *parents, last = path.split(".")
    if len(parents) > _DEEPEST:
        return f"{written}: {_TOO_DEEP}"
    block = config
    for depth, key in enumerate(parents, 1):
        inner = block.get(key)
        if inner is None:
            inner = block[key] = {}
        if not isinstance(inner, dict):
            what = printable(".".join(parents[:depth]), _MOST_SHOWN)
            return f"{written}: {what} is not a block but {show(inner)}; set {what} as a whole"
        block = inner
    try:
        block[last] = _json(text)
    except (_NotSense, ValueError, RecursionError):  # the text itself, so that nobody has to quote quotes in a shell
        block[last] = text
    return None

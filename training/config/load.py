"""Reading a DeepSpeed JSON file, and the changes that the command line makes to it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import printable, read_text
from training.config.problems import MOST_LISTED, show
from training.config.schema import OWN_BLOCK, nearest

_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")
_MOST_SHOWN = 120  # characters of what is wrong
_LONGEST_FLAG = 1000  # characters of a flag's value: a path may be long
_MOST_BYTES = 2**20  # DeepSpeed's own files have a thousandth of it
_DEEPEST = 30  # DeepSpeed's own files are 4 deep; without a limit a hostile file ends in a RecursionError somewhere


def load(path: Path, overrides: Sequence[str] = ()) -> dict:
    """The file's content with each `a.b.c=value` of `overrides` put in; nothing is resolved or judged yet."""
    config = _parse(_read(path), path)
    _check_depth(config, path)
    problems = [problem for override in overrides if (problem := _override(config, override))]
    if problems:
        raise UserError("\n".join(problems))
    _check_depth(config, path)
    return config


def _check_depth(config: dict, path: Path) -> None:
    if _deeper_than(_DEEPEST, config):
        raise UserError(f"{path}: blocks within blocks, more than {_DEEPEST} deep.")


def run_defaults(config: dict, known_flags: Collection[str], *, source: object) -> dict:
    """The file's "bufudu" block: values for flags that the command line leaves open, such as {"ep_size": 2}.

    DeepSpeed has no key for some choices that belong to an experiment; a flag given explicitly wins. `source` is what
    the messages call the configuration.
    """
    block = config.get(OWN_BLOCK) or {}
    if not isinstance(block, dict):
        raise UserError(f'{source}, {OWN_BLOCK}: must be a block of flags and their values, such as {{"ep_size": 2}}')
    problems, flags = [], []
    for flag, value in block.items():
        if flag not in known_flags:
            guess = nearest(flag, known_flags)
            flags = flags if guess else [f"the flags are {', '.join(sorted(known_flags))}."]
            hint = f"; did you mean {guess}?" if guess else ""
            name = printable(flag, _MOST_SHOWN)
            problems.append(f"{OWN_BLOCK}.{name}: train.py has no flag --{name}{hint}")
        elif isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > _LONGEST_FLAG):
            problems.append(f"{OWN_BLOCK}.{flag}: must be a single value, as after --{flag}")
    if problems:
        listed = "\n  ".join([*problems[:MOST_LISTED], *flags])
        raise UserError(f"{source}: {listed}")
    return {flag: value for flag, value in block.items() if value is not None}


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
    """The files that the user may have meant: beside the missing one, else in ds_configs/."""
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
        config = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        if not text.strip():
            raise UserError(f"{path}: the file is empty; ds_configs/ holds some to copy.") from None
        raise UserError(f"{where}: not valid JSON: {error.msg}.{_usual_slip(text, error)}") from None
    except RecursionError:
        raise UserError(f"{path}: blocks within blocks, more than {_DEEPEST} deep.") from None
    except ValueError as error:  # a key twice, NaN, a number of thousands of digits
        raise UserError(f"{path}: {printable(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold one block in {{ }}, as DeepSpeed's documentation shows.")
    return config


def _usual_slip(text: str, error: json.JSONDecodeError) -> str:
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if before.endswith(",") and after[:1] in ("}", "]", ""):
        return " There is a comma after the last entry."
    if after.startswith(("//", "#", "/*")):
        return " JSON has no comments."
    if after.startswith(("True", "False", "None")):
        return " JSON writes true, false, null."
    if after.startswith("'"):
        return ' JSON wants "double quotes".'
    return ""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Python would keep the last of two equal keys and say nothing."""
    block: dict[str, object] = {}
    for key, value in pairs:
        if key in block:
            raise ValueError(f'the key "{key}" stands twice in one block; keep one of them.')
        block[key] = value
    return block


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value.")


def _override(config: dict, override: str) -> str | None:
    """Puts one `a.b.c=value` into `config`; returns what is wrong with it, if something is."""
    path, equals, text = override.partition("=")
    path, written = path.strip(), f"--set {printable(override, _MOST_SHOWN)}"
    if not equals or not _KEY.fullmatch(path) or not path.isprintable():
        return f"{written}: write it as key.of.the.file=value, e.g. --set optimizer.params.lr=3e-4"
    *parents, last = path.split(".")
    if len(parents) > _DEEPEST:
        return f"{written}: blocks within blocks, more than {_DEEPEST} deep"
    block = config
    for depth, key in enumerate(parents, 1):
        inner = block.get(key)
        if inner is None:
            inner = block[key] = {}
        if not isinstance(inner, dict):
            what = printable(".".join(parents[:depth]), _MOST_SHOWN)
            return f"{written}: {what} is no block but {show(inner)}; set {what} as a whole"
        block = inner
    block[last] = _value(text)
    return None


def _value(text: str) -> object:
    """JSON if it is JSON, else the text itself, so that nobody has to quote quotes in a shell."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _deeper_than(levels: int, value: object) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer if isinstance(outer, (dict, list)) for inner in _items(outer)]
        if not layer:
            return False
    return True


def _items(outer: dict | list) -> list:
    return list(outer.values()) if isinstance(outer, dict) else outer

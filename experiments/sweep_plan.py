"""Which runs a sweep consists of: the product of the values (or a part drawn from it), times the seeds.

A run's folder is called after what the sweep sets, `lr=0.002_stage=1_seed=3`, so that more values can be added later.
The best configuration becomes a DeepSpeed JSON that needs no further flags.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import printable
from experiments.settings import short_names
from training.config import command_line
from training.config.load import load
from training.config.schema import OWN_BLOCK

LONGEST_NAME = 120  # characters; file systems take 255 bytes
MOST_RUNS = 1000
_OUTSIDE_NAMES = re.compile(r"[^\w.+=,-]+")
_OPENING, _CLOSING = "[{", "]}"


@dataclass(frozen=True)
class PlannedRun:
    """One run: its folder's name, what it changes in the JSON (`key=value`), and its seed."""

    name: str
    overrides: tuple[str, ...]
    seed: int


def parse_values(option: str) -> tuple[str, list[str]]:
    """Return the key and the values of `key=value,value,...`; a comma inside [ ], { } or quotes separates nothing."""
    key, equals, text = option.partition("=")
    values = _split(text)
    if not equals or not key.strip() or not all(values):
        raise UserError(
            f"--set {printable(option)}: write it as key.of.the.file=value,value, for example "
            "--set optimizer.params.lr=1e-3,2e-3"
        )
    if len(set(values)) < len(values):
        raise UserError(f"--set {printable(option)}: a value stands there twice; keep one of them")
    return key.strip(), values


def _split(text: str) -> list[str]:
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def plan_runs(options: Sequence[str], seeds: Sequence[int], draw: int | None = None) -> list[PlannedRun]:
    """Return the runs of a sweep, all configurations with the first seed before those with the second.

    With `draw`, so many configurations are drawn from the product, the same ones at every call.
    """
    values: dict[str, list[str]] = {}
    for option in options:
        key, found = parse_values(option)
        if key in values:
            raise UserError(f"--set {key} is there twice: write its values in one, {key}={','.join(values[key])},...")
        values[key] = found
    combinations = list(itertools.product(*values.values()))
    if draw is not None and draw < len(combinations):
        chosen = set(random.Random(0).sample(range(len(combinations)), draw))
        combinations = [combination for k, combination in enumerate(combinations) if k in chosen]
    if len(combinations) * len(seeds) > MOST_RUNS:
        raise UserError(
            f"{len(combinations) * len(seeds):,} runs are more than {MOST_RUNS:,}: give fewer values, or --random N"
        )
    shorts = short_names(list(values))
    runs = []
    for seed in seeds:
        for combination in combinations:
            pairs = list(zip(values, combination, strict=True))
            words = [f"{shorts[key]}={value}" for key, value in pairs]
            name = _folder_name([*words, f"seed={seed}"])
            runs.append(PlannedRun(name, tuple(f"{key}={value}" for key, value in pairs), seed))
    return runs


def _folder_name(words: Sequence[str]) -> str:
    """Return the words as the name of a folder; what would not be allowed in one, or too long, becomes a hash."""
    text = "_".join(words)
    name = _OUTSIDE_NAMES.sub("-", text)
    if name == text and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def complete_config(path: Path, arguments: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the JSON file with the values of the winning run, and with the flags of the sweep in its own block.

    "auto" stays "auto". The text, which no file can name, has to be given with --data again.
    """
    given = command_line.parse(arguments, "")
    config = load(path, [*given.get("set", []), *overrides])
    names = set(command_line.run_flags()) - {"seed", "output", "resume"}  # of one run, not of the experiment
    flags = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in given.items()
        if name in names and value is not None
    }
    block = config.get(OWN_BLOCK) or {}
    if block or flags:
        config[OWN_BLOCK] = block | flags
    return config

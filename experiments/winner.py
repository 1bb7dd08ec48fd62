"""The best configuration of a sweep as a DeepSpeed JSON that needs no further flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import command_line
from training.config.load import load
from training.config.schema import OWN_BLOCK

# of one run, not of the experiment
_OF_THE_RUN = ("seed", "output", "resume")


def complete_config(path: Path, arguments: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the JSON file with the values of the winner, and with the flags of the sweep in its own block.

    "auto" stays "auto". The text, which no file can name, has to be given with --data again.
    """
    given = command_line.parse(arguments, "")
    config = load(path, [*given.get("set", []), *overrides])
    names = set(command_line.run_flags()) - set(_OF_THE_RUN)
    flags = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in given.items()
        if name in names and value is not None
    }
    block = config.get(OWN_BLOCK) or {}
    if block or flags:
        config[OWN_BLOCK] = block | flags
    return config

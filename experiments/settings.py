"""What differs between the configurations of runs, and what it is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.run_settings import PLACE

MISSING = "-"
SEED = "--seed"


def experiment_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what runs of one experiment share: everything but the seed and the machine that it ran on."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items() if key not in (SEED, *PLACE)))


def differences(all_settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the names whose values differ, each with its value in every run; a missing one is MISSING.

    A flag that some runs do not know, being of an earlier version, differs only if the others' values do. A key of the
    JSON that is left out is a difference.
    """
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    found = {}
    for name in names:
        values = [settings.get(name, MISSING) for settings in all_settings]
        known = values if _is_of_json(name) else [value for value in values if value != MISSING]
        if len({repr(value) for value in known}) > 1:
            found[name] = values
    return found


def _is_of_json(name: str) -> bool:
    return not name.startswith("--") and name not in (*PLACE, "steps", "text")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return for each dotted name as many of its last parts as tell it from the others.

    `optimizer.params.lr` is `lr`, unless there is a `scheduler.params.lr` too.
    """
    found = {}
    for name in names:
        parts = name.removeprefix("--").split(".")
        others = [other.removeprefix("--").split(".") for other in names if other != name]
        depth = 1
        while depth < len(parts) and any(other[-depth:] == parts[-depth:] for other in others):
            depth += 1
        found[name] = ".".join(parts[-depth:])
    return found


def show_value(value: Any) -> str:
    """Return a value as a JSON file or a command line would have it: 0.002, true, a+b."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)

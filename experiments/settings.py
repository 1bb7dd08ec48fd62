"""What a run was trained with, flat, and what of it differs between runs.

A name is that of the user's own file or command: `optimizer.params.lr` of the DeepSpeed JSON, `--hidden_size` of the
command line. What only says where or how often something is written is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.run_figures import ComparedRun

MISSING = "-"
SEED = "--seed"
# Of the JSON: monitors and logs, and what is shown as the length of the run
_NOT_SETTINGS = (
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "timers",
    "scheduler.params.total_num_steps",
)
# Of the flags: places, sessions and what is written; text, length and JSON are compared as what became of them
_NOT_FLAGS = (
    "deepspeed_config",
    "set",
    "output",
    "data",
    "tokenizer",
    "vocab_size",
    "dedup",
    "repetition",
    "epochs",
    "max_steps",
    "budget",
    "time_limit",
    "log_interval",
    "sample_interval",
    "save_interval",
    "keep_last",
    "resume",
    "accept_changes",
    "on_divergence",
    "max_rollbacks",
    "preflight",
    "skip_preflight",
    "plan",
    "plan_rows",
    "plan_utilisation",
)
_FROM_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
# Where it ran: shown, but runs that differ in nothing else are the same experiment
PLACE = ("python", "torch", "deepspeed", "device", "processes")


def settings_of(run: ComparedRun) -> dict[str, Any]:
    """Return all that the run was trained with, by name."""
    record = run.record
    found = {key: value for key, value in _flat(record.ds_config) if not key.startswith(_NOT_SETTINGS)}
    found |= {f"--{name}": value for name, value in record.flags.items() if name not in _NOT_FLAGS}
    found |= {f"--{name}": value for name, value in record.model.items() if name not in _FROM_TOKENIZER}
    found["steps"] = record.total_steps or record.flags.get("max_steps")
    found["text"] = _text_name(run)
    places = record.record.get("versions"), {key: record.record.get(key) for key in ("device", "processes")}
    for place in places:
        found |= {key: value for key, value in (place or {}).items() if key in PLACE}
    return {key: value for key, value in found.items() if value is not None}


def experiment_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what runs of one experiment share: everything but the seed and the machine."""
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
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(show_value, value)) + "]"
    return str(value)


def _text_name(run: ComparedRun) -> str | None:
    """Return the corpus by its name and the beginning of its hash, where that is known."""
    name, fingerprint = run.record.corpus, run.text.fingerprint
    short = name.rstrip("/").rpartition("/")[2] if name else ""
    return f"{short} ({fingerprint[:8]})" if fingerprint else short or None


def _flat(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

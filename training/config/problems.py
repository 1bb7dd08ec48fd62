"""Collecting what is wrong with a DeepSpeed configuration, beginning with its keys and the kinds of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping

from common.errors import UserError
from common.files import printable
from training.config import schema, value_kinds
from training.config.schema import AUTO
from training.config.value_kinds import Kind, Schema

MOST_LISTED = 20


class Problems:
    """Every problem of one configuration, one a key: the first is the cause, others would only repeat it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str]] = {}

    def add(self, key: str, what: str, hint: str) -> None:
        """Note `what` is wrong with `key`; `hint` says what to write instead."""
        self._found.setdefault(key, (what, hint))

    def about(self, *keys: str) -> bool:
        """Return whether something is known to be wrong with one of the keys."""
        return any(key in self._found for key in keys)

    def raise_if_any(self, source: str) -> None:
        """Raise one UserError that lists them all."""
        if not self._found:
            return
        count = len(self._found)
        lines = [f"{source}: {count} problem{'s' if count > 1 else ''}, nothing was started."]
        said = set()
        for number, (key, (what, hint)) in enumerate(list(self._found.items())[:MOST_LISTED], 1):
            lines += [f"  {number}. {printable(key)}: {what}", f"     {'As above.' if hint in said else hint}"]
            said.add(hint)
        if count > MOST_LISTED:
            lines.append(f"  and {count - MOST_LISTED} more.")
        raise UserError("\n".join(lines))


def show(value: object) -> str:
    """Return a value as the file writes it, shortened to fit a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        return "…"
    return printable(text, 60)


def keep_known(config: dict, problems: Problems) -> dict:
    """Return a copy with only what DeepSpeed knows and can read, and report the rest. A null counts as not written."""
    kept = _keep(config, schema.top_level(), "", problems)
    optimizer, scheduler = kept.get("optimizer", {}), kept.get("scheduler", {})
    torch_adam = optimizer.get("params", {}).get("torch_adam") is True
    _keep_params(optimizer, schema.optimizer_params(optimizer.get("type", ""), torch_adam), "optimizer", problems)
    _keep_params(scheduler, schema.schedules().get(scheduler.get("type", "")), "scheduler", problems)
    return kept


def _keep_params(block: dict, known: Schema | None, name: str, problems: Problems) -> None:
    if "params" in block:
        # of an optimizer or schedule that is not known everything passes, but for an "auto"
        known = dict.fromkeys(block["params"], value_kinds.ANY) if known is None else known
        block["params"] = _keep(block["params"], known, f"{name}.params.", problems)


def _keep(block: Mapping, known: Schema, prefix: str, problems: Problems) -> dict:
    kept = {}
    for key, value in block.items():
        path, kind = prefix + key, known.get(key)
        if value is None:  # as if it were not written, whatever the key
            continue
        if kind is None:
            _report_unknown(path, known, problems)
        elif value == AUTO and not isinstance(kind, Mapping):
            kept[key] = value
        elif isinstance(kind, Mapping) and isinstance(value, dict):
            kept[key] = _keep(value, kind, f"{path}.", problems)
        elif isinstance(kind, Mapping):  # once DeepSpeed took true for a block that turns something on
            example = 'such as {"stage": 2}' if "stage" in kind else 'such as {"enabled": true}'
            _fits(
                path, value, value_kinds.BLOCK, problems, f", {example}" if {"stage", "enabled"} & kind.keys() else ""
            )
        elif _fits(path, value, kind, problems):
            kept[key] = value
    return kept


def _fits(path: str, value: object, kind: Kind, problems: Problems, example: str = "") -> bool:
    if not kind.fits(value):
        problems.add(path, f"{show(value)} is not what belongs here.", f"Write {kind.words}{example}.")
        return False
    return True


def _report_unknown(path: str, known: Schema, problems: Problems) -> None:
    former = schema.former_keys().get(path.rpartition(".")[2])
    if former:
        problems.add(path, f"not a key here: {former}.", "Take it out, or write it the new way.")
        return
    guess = schema.nearest_key(path, known if "." in path else [*known, schema.OWN_BLOCK])
    hint = f"Did you mean {guess}?" if guess else f"The keys here are {', '.join(known)}."
    problems.add(path, "DeepSpeed has no such key here, and would ignore it or stop.", hint)

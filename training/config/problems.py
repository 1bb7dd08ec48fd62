"""Collecting what is wrong with a DeepSpeed configuration, beginning with its keys and the kinds of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping

from common.errors import UserError
from common.files import printable
from training.config import schema as keys
from training.config.schema import AUTO, AUTO_KEYS, Schema

MOST_LISTED = 20


class Problems:
    """Every problem of one configuration, one a key: the first is the cause, others would be its echo."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str]] = {}

    def add(self, key: str, what: str, mend: str) -> None:
        """`what` says what is wrong with `key`, `mend` what to write instead."""
        self._found.setdefault(key, (what, mend))

    def about(self, *keys: str) -> bool:
        """Whether something is known to be wrong with one of the keys."""
        return any(key in self._found for key in keys)

    def raise_if_any(self, source: str) -> None:
        """Ends in one UserError that lists them all."""
        if not self._found:
            return
        count = len(self._found)
        lines = [f"{source}: {count} problem{'s' if count > 1 else ''}, nothing was started."]
        said = set()
        for number, (key, (what, mend)) in enumerate(list(self._found.items())[:MOST_LISTED], 1):
            lines += [f"  {number}. {printable(key)}: {what}", f"     {'As above.' if mend in said else mend}"]
            said.add(mend)
        if count > MOST_LISTED:
            lines.append(f"  and {count - MOST_LISTED} more.")
        raise UserError("\n".join(lines))


def show(value: object) -> str:
    """A value as the file writes it, cut where a message would drown in it."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        return "…"
    return printable(text, 60)


def keep_known(config: dict, problems: Problems) -> dict:
    """A copy with only what DeepSpeed knows and can read; the rest is reported. A null counts as not written."""
    kept = _keep(config, keys.TOP, "", problems)
    optimizer, scheduler = kept.get("optimizer", {}), kept.get("scheduler", {})
    name, params = optimizer.get("type", "").lower(), optimizer.get("params", {})
    _keep_params(optimizer, keys.optimizer_params(name, params), "optimizer.params.", problems)
    _keep_params(scheduler, keys.SCHEDULERS.get(scheduler.get("type")), "scheduler.params.", problems)
    return kept


def _keep_params(block: dict, schema: Schema | None, prefix: str, problems: Problems) -> None:
    if "params" in block:
        # of an optimizer or schedule that we do not know everything passes, but for an "auto"
        schema = dict.fromkeys(block["params"], keys.ANY) if schema is None else schema
        block["params"] = _keep(block["params"], schema, prefix, problems)


def _keep(block: Mapping, schema: Schema, prefix: str, problems: Problems) -> dict:
    kept = {}
    for key, value in block.items():
        path, kind = prefix + key, schema.get(key)
        if value is None:  # as if it were not written, whatever the key
            continue
        if kind is None:
            _report_unknown(path, schema, problems)
        elif value == AUTO:
            if _may_be_auto(path, problems):
                kept[key] = value
        elif isinstance(kind, Mapping) and isinstance(value, dict):
            kept[key] = _keep(value, kind, f"{path}.", problems)
        elif _fits(path, value, kind, problems):
            kept[key] = value
    return kept


def _fits(path: str, value: object, kind: keys.Kind | Schema, problems: Problems) -> bool:
    if isinstance(kind, Mapping):
        kind = keys.BLOCK  # a block is wanted, and this is none
    if not kind.fits(value):
        auto = f', or "{AUTO}"' if path in AUTO_KEYS else ""
        problems.add(path, f"{show(value)} is not what belongs here.", f"Write {kind.words}{auto}.")
        return False
    if not path.endswith(".params"):  # params are looked through on their own, once their type is known
        _report_autos(path, value, problems)
    return True


def _report_unknown(path: str, schema: Schema, problems: Problems) -> None:
    former = keys.FORMER.get(path.rpartition(".")[2])
    if former:
        problems.add(path, f"not a key here: {former}.", "Take it out, or write it the new way.")
        return
    guess = keys.nearest_key(path, schema if "." in path else [*schema, keys.OWN_BLOCK])
    mend = f"Did you mean {guess}?" if guess else f"The keys here are {', '.join(schema)}."
    problems.add(path, "DeepSpeed has no such key here, and would ignore it or stop.", mend)


def _may_be_auto(path: str, problems: Problems) -> bool:
    allowed = path in AUTO_KEYS or path.startswith(keys.DEEPSPEED_AUTO)
    if not allowed:
        mend = f'Write its value. "auto" can stand at {", ".join(AUTO_KEYS)}.'
        problems.add(path, 'train.py has no rule to fill in this "auto".', mend)
    return allowed


def _report_autos(path: str, value: object, problems: Problems) -> None:
    """The same for an "auto" inside a list or a block whose keys are not in the table."""
    if value == AUTO:
        _may_be_auto(path, problems)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _report_autos(f"{path}.{key}", inner, problems)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _report_autos(f"{path}[{index}]", inner, problems)

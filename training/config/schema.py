"""The keys of a DeepSpeed JSON file: which there are, which was meant, and which values fit.

DeepSpeed ignores most keys that it does not know, so a misspelled one would train another recipe without a word.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from common.files import read_json, replace_bytes
from training.config.foreign_flags import json_key
from training.config.problems import Problems, show
from training.config.value_kinds import BLOCK, Schema, fits, in_words

OWN_BLOCK = "bufudu"
"""The one block that is not DeepSpeed's: values of train.py's flags for the runs of this file."""

AUTO = "auto"
DEEPSPEED_AUTO = ("data_types.keep_in_fp32_modules", "pipeline", "zero_optimization.zenflow", "expert_parallel")
"""Keys and blocks where "auto" is a word of DeepSpeed's own."""

ZERO_TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
"""What DeepSpeed lets run under ZeRO as it is; any other optimizer needs "zero_allow_untested_optimizer"."""

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("deepspeed_keys.py", "value_kinds.py"))
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Keys:
    """What the installed DeepSpeed and PyTorch take, as deepspeed_keys.py finds it."""

    top_level: Schema
    schedules: Mapping[str, Schema]
    """The parameters of each learning-rate schedule."""
    any_case: list[str]
    """Optimizers that DeepSpeed takes in any case of letters; the others are those that torch.optim has,"""
    as_spelled: list[str]
    optimizer_params: Mapping[str, Schema]
    """The parameters of each optimizer, of DeepSpeed's by their small letters."""
    former: Mapping[str, str]
    """Names that were once right, or are right in another place, each with what to write instead."""

    def optimizer_names(self) -> list[str]:
        """Return every optimizer's name once, as a person would write it."""
        spelled = {name.lower() for name in self.as_spelled}
        return sorted(self.as_spelled) + [name.title() for name in self.any_case if name not in spelled]

    def params_of(self, optimizer: Mapping) -> Schema | None:
        """Return what the "params" of an optimizer's block may hold; None if they are not known."""
        written, params = str(optimizer.get("type")), optimizer.get("params")
        name = written.lower() if written.lower() in self.any_case else written
        torch_adam = isinstance(params, dict) and params.get("torch_adam") is True
        return self.optimizer_params.get("torch_adam" if torch_adam and name in ("adam", "adamw") else name)

    def schedule_params(self, scheduler: Mapping) -> Schema | None:
        """Return what the "params" of a scheduler's block may hold; None if they are not known."""
        return self.schedules.get(str(scheduler.get("type")))

    def paths(self) -> Iterator[str]:
        """Yield every key of the file, dotted, with the parameters of all schedules and of the usual optimizers."""
        yield from _paths(self.top_level, "")
        for name in ("torch_adam", "muon", "adam"):
            yield from _paths(self.optimizer_params[name], "optimizer.params.")
        for params in self.schedules.values():
            yield from _paths(params, "scheduler.params.")


@cache
def keys() -> Keys:
    """Return the keys; they are kept in the user's cache, since importing DeepSpeed to read them takes seconds."""
    digest = hashlib.sha256(f"{version('deepspeed')} {version('torch')}".encode())
    for path in _SOURCES:
        digest.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bufudu"
    file = folder / f"deepspeed-keys-{digest.hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        return Keys(**read_json(file, _MOST_BYTES))
    from training.config import deepspeed_keys

    found = Keys(**deepspeed_keys.read())
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, [json.dumps(asdict(found)).encode()])
    return found


def _paths(schema: Schema, prefix: str) -> Iterator[str]:
    for key, kind in schema.items():
        yield prefix + key
        if isinstance(kind, Mapping):
            yield from _paths(kind, f"{prefix}{key}.")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most like `word`, if any is like it."""
    word, spelled = word.lower(), {each.lower(): each for each in known}
    found = difflib.get_close_matches(word, spelled, n=1, cutoff=0.6)
    # "path" for "output_path": too short to count as close, yet surely meant
    found = found or [each for each in spelled if len(word) >= 4 and word in each]
    return spelled[found[0]] if found else None


def _nearest_key(path: str, siblings: Iterable[str]) -> str | None:
    """Return the dotted key that `path` was probably meant to be: in its own block, or its name elsewhere."""
    parent, _, name = path.rpartition(".")
    if inside := nearest(name, siblings):
        return f"{parent}.{inside}" if parent else inside
    leaves: dict[str, str] = {}
    for known in keys().paths():
        leaves.setdefault(known.rpartition(".")[2], known)
    found = nearest(name, leaves)
    # the same key may be one of another optimizer
    return leaves[found] if found and leaves[found] != path else None


def keep_known(config: dict, problems: Problems) -> dict:
    """Return a copy with only what DeepSpeed knows and can read, and report the rest.

    A null counts as not written, and so does an optimizer or a scheduler that is "auto" as a whole, and a former key
    that is switched off.
    """
    config = {
        key: None if value == AUTO and key in ("optimizer", "scheduler") else value for key, value in config.items()
    }
    known: dict = {**keys().top_level}
    for name, params_of in (("optimizer", keys().params_of), ("scheduler", keys().schedule_params)):
        # of an optimizer or schedule that is not known any parameters pass
        if isinstance(block := config.get(name), dict) and (params := params_of(block)):
            known[name] = {**known[name], "params": params}
    return _keep(config, known, "", problems)


def _keep(block: Mapping, known: Schema, prefix: str, problems: Problems) -> dict:
    kept = {}
    for key, value in block.items():
        path, kind = prefix + key, known.get(key)
        if value is None:  # as if it were not written, whatever the key
            continue
        if kind is None and key in keys().former and _is_off(value):  # nothing is asked for
            continue
        if kind is None:
            _report_unknown(path, known, problems)
        elif isinstance(kind, Mapping) and isinstance(value, dict):
            kept[key] = _keep(value, kind, f"{path}.", problems)
        elif isinstance(kind, Mapping):  # once DeepSpeed took true for a block that turns something on
            what = "is not for a whole block, but for a value in one" if value == AUTO else "is not what belongs here"
            word = next((word for word in ("stage", "enabled") if word in kind), None)
            usual = '"auto"' if value == AUTO else 2 if word == "stage" else "true"
            example = f', such as {{"{word}": {usual}}}' if word else ""
            problems.add(path, f"{show(value)} {what}.", f"Write {BLOCK}{example}.")
        elif fits(kind, value) or (value == AUTO and kind != BLOCK):
            kept[key] = value
        else:
            problems.add(path, f"{show(value)} is not what belongs here.", f"Write {in_words(kind)}.")
    return kept


def _is_off(value: object) -> bool:
    return value is False or (isinstance(value, dict) and value.get("enabled") is False)


def _report_unknown(path: str, known: Schema, problems: Problems) -> None:
    if former := keys().former.get(path.rpartition(".")[2]):
        gone = former.endswith(("removed it", "not have"))
        problems.add(
            path, f"not a key here: {former}.", "Take it out." if gone else "Take it out, or write it the new way."
        )
        return
    guess = json_key(path) or _nearest_key(path, known if "." in path else [*known, OWN_BLOCK])
    hint = f"Did you mean {guess}?" if guess else f"The keys here are {', '.join(known)}."
    problems.add(path, "DeepSpeed has no such key here, and would ignore it or stop.", hint)

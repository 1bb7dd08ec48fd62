"""What a session of a run takes over from the sessions before it, and what it must not replace."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, read_json_lines
from training.checkpointing import checkpoint
from training.checkpointing.run_state import RunState, check_config, check_identity
from training.context import RunContext
from training.planning import budget as budgets

# What a run leaves beside its checkpoints and logs. Metrics and the flags' record are moved last: they are judged.
_RESULTS = (
    "model",
    "samples.jsonl",
    "alarms.jsonl",
    "divergence.jsonl",
    "tensorboard",
    "csv_monitor",
    "summary.json",
    "figures.json",
)
_METRICS, _RECORDS = "metrics.jsonl", ("preflight.json", "hparams", "ds_config.json", "run.json")
_MOST_BYTES = 2**20


def check_earlier_run(output: Path, resume: str) -> None:
    """Raise UserError where a new run would replace the results of one that had checkpoints, which are gone."""
    left = _results(output)
    if resume != "auto" or not left or checkpoint.find(output, resume):
        return
    if _unsaved_steps(output) is None:
        raise UserError(
            f"{output} holds {', '.join(left[:3])} of an earlier run, but no checkpoint to continue it from: copy its "
            f"checkpoints/ there too, give another --output, or let --resume never start anew and move those to "
            f"{_free_folder(output)}"
        )


def set_aside_earlier_run(output: Path) -> str | None:
    """Move what is left of a run without checkpoints out of the way of a new one; return a line about it. Rank 0."""
    if not _results(output) or checkpoint.find(output, "auto"):
        return None
    steps, place = _unsaved_steps(output), _free_folder(output)
    place.mkdir()
    for name in (*_RESULTS, _METRICS, *_RECORDS):
        if os.path.lexists(output / name):
            os.replace(output / name, place / name)
    what = "the earlier run"
    if steps is not None:
        what = f"a run that ended after {steps:,} steps, before its first checkpoint"
    return f"{output} has no checkpoint of its own: the files of {what} are now in {place}"


def _results(output: Path) -> list[str]:
    return [name for name in (*_RESULTS, _METRICS) if os.path.lexists(output / name)]


def _free_folder(output: Path) -> Path:
    return next(place for n in count(1) if not os.path.lexists(place := output / f"earlier-{n}"))


def _unsaved_steps(output: Path) -> int | None:
    """Return the steps of a run that was killed before it could save any; None if it had been saved, or may have."""
    if not (output / _METRICS).is_file():
        return None
    try:
        path = output / "summary.json"
        summary = read_json(path, _MOST_BYTES) if path.exists() else {"steps": 0}
        interval = read_json(output / "run.json", _MOST_BYTES)["flags"]["save_interval"]
        steps = int(deque(({"step": 0}, *read_json_lines(output / _METRICS)), maxlen=1)[0]["step"])
        return steps if summary["steps"] == 0 and steps < interval else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_state(context: RunContext) -> RunState:
    """Return the state of a run before its first step."""
    resolved = context.resolved
    facts = {"identity": _identity(context), "ds_config": resolved.config, "total_steps": resolved.total_steps}
    return RunState(**facts, kernels=list(context.kernels))


def continue_state(state: RunState, context: RunContext, found: Path) -> list[str]:
    """Let the state of checkpoint `found` go on with this session's configuration; return what differs from then.

    Raise UserError if the checkpoint belongs to another run, or was trained with another configuration.
    """
    identity, resolved = _identity(context), context.resolved
    check_identity(state, identity, found, at_once=resolved.micro_batch * context.world.size)
    differences = check_config(state, resolved.config, found, accept=context.options.accept_changes)
    state.identity, state.ds_config, state.total_steps = identity, resolved.config, resolved.total_steps
    return differences


def nothing_left(state: RunState, patience: int | None) -> str | None:
    """Return why a run need not be continued, if so."""
    if state.step >= (state.total_steps or 0) and state.finished:
        return f"has finished its {state.step:,} steps already: --output starts another run"
    if why := state.early_stopping(patience):
        return f"has stopped already: {why}; a larger --patience continues it"
    return None


def outlook(state: RunState, budget: float, running: float) -> str:
    """Return where a run that continues will end, `running` seconds into this session; its length stays."""
    steps_left = (state.total_steps or 0) - state.step
    return budgets.outlook(budget, state.wall_seconds + running, steps_left, state.pace)


def _identity(context: RunContext) -> dict[str, Any]:
    """Return what must not change between the sessions of one run.

    The DeepSpeed JSON is checked apart, and the number of processes and where the experts are may change.
    """
    manifest, options = context.corpus.manifest, context.options
    sizes = {
        f"model.{name}": value
        for name, value in asdict(context.config).items()
        if name not in ("max_position_embeddings", "ep_size")
    }
    return sizes | {
        "corpus": manifest.fingerprint,
        "tokenizer": manifest.tokenizer_sha256,
        "train_batch_size": context.resolved.train_batch,
        "max_seq_len": options.max_seq_len,
        "seed": options.seed,
    }

"""What a session of a run takes over from the sessions before it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.checkpointing.run_state import RunState, check_config, check_identity
from training.context import RunContext


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

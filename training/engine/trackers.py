"""Weights & Biases and Comet by DeepSpeed's own monitors: every figure, and one run there over all sessions here."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from training.checkpointing.run_state import RunState
from training.engine.protocol import Monitor

_BY_SAMPLES = "Train/Samples/"  # DeepSpeed's own figures count in samples, ours in steps


def continue_trackers(ds_config: dict[str, Any], output: Path, state: RunState) -> dict[str, Any]:
    """Return the JSON with Comet's key of the run, and set W&B's in the environment; what the user has set counts more.

    DeepSpeed hands none to W&B. Of Comet's figures it drops those that are less than 100 apart unless told otherwise.
    """
    wandb, comet = (ds_config.get(name) or {} for name in ("wandb", "comet"))
    if wandb.get("enabled") or comet.get("enabled"):
        state.tracker_id = state.tracker_id or uuid.uuid4().hex
    if wandb.get("enabled"):
        given = {"RUN_ID": state.tracker_id, "RESUME": "allow", "NAME": output.name, "DIR": str(output)}
        for name, value in given.items():
            os.environ.setdefault(f"WANDB_{name}", value)
    if not comet.get("enabled"):
        return ds_config
    named = {"experiment_key": state.tracker_id, "experiment_name": output.name, "mode": "get_or_create"}
    return ds_config | {"comet": named | {"samples_log_interval": 1} | comet}


def own_axes(monitor: Monitor) -> None:
    """Let W&B draw each figure against what it counts in.

    DeepSpeed gives steps and samples as one and the same step, and W&B drops whatever comes with a smaller one.
    """
    found: Any = getattr(monitor, "wandb_monitor", None)
    if found is None or not found.enabled:
        return
    import wandb  # pyright: ignore[reportMissingImports] (it is there where its monitor is)

    wandb.define_metric("*", step_metric="step")
    wandb.define_metric(f"{_BY_SAMPLES}*", step_metric="samples")

    def write_events(events: list[tuple[str, float, int]]) -> None:
        for tag, value, x in events:
            wandb.log({tag: value, "samples" if tag.startswith(_BY_SAMPLES) else "step": x})

    found.write_events = write_events

"""Two runs that should be one: what differs between their weights, figures, curves and samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

TIMES = ("tokens_per_second", "probe_seconds", "seconds", "save_seconds", "model_flops_utilisation")
MODEL = Path("model") / "model.safetensors"


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file, none if it is not there; a last line that is being written is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def last_step(run: Path) -> int:
    """Of the newest training line of metrics.jsonl, 0 if there is none."""
    return max((row["step"] for row in rows(run / "metrics.jsonl") if row.get("split") == "train"), default=0)


def differences(run: Path, reference: Path) -> list[str]:
    """What is not as in the uninterrupted run, a sentence each; empty if all is bit for bit the same but for times."""
    found = []
    if (run / MODEL).read_bytes() != (reference / MODEL).read_bytes():
        found.append(f"the final weights differ by up to {weight_difference(run, reference):.3g}")
    for name in ("metrics.jsonl", "samples.jsonl"):
        found += _multiset(name, _lasting(rows(run / name)), _lasting(rows(reference / name)))
    found += _multiset("TensorBoard", scalars(run), scalars(reference))
    summaries = [
        _lasting([json.loads((folder / "summary.json").read_text(encoding="utf-8"))]) for folder in (run, reference)
    ]
    if summaries[0] != summaries[1]:
        found.append("summary.json differs")
    return found


def weight_difference(run: Path, reference: Path) -> float:
    """The largest one of any weight of the final models; infinite if they do not have the same shapes."""
    ours, theirs = load_file(run / MODEL), load_file(reference / MODEL)
    if {name: array.shape for name, array in ours.items()} != {name: array.shape for name, array in theirs.items()}:
        return math.inf
    return max(float(abs(ours[name].astype("f8") - theirs[name].astype("f8")).max()) for name in ours)


def scalars(run: Path) -> Counter[str]:
    """How often TensorBoard shows each (tag, step, value), times apart."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Counter[str] = Counter()
    for folder in sorted({path.parent for path in (run / "tensorboard").rglob("*tfevents*")}):
        board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        board.Reload()
        for tag in board.Tags()["scalars"]:
            if tag.rpartition("/")[2] not in TIMES:
                found.update(f"{tag} at {event.step}: {event.value!r}" for event in board.Scalars(tag))
    return found


def _lasting(lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """Lines without the figures that depend on the clock, and how often each is there."""
    return Counter(
        json.dumps({name: value for name, value in line.items() if name not in TIMES}, sort_keys=True) for line in lines
    )


def _multiset(name: str, ours: Counter[str], theirs: Counter[str]) -> list[str]:
    missing, extra = theirs - ours, ours - theirs
    if not missing and not extra:
        return []
    example = next(iter(missing or extra))
    return [f"{name}: {missing.total()} lines missing and {extra.total()} too many, such as {example[:120]}"]

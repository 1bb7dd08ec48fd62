"""An experiment's runs as the cells of one line, the same on the terminal and on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from diagnosis.report.format import MISSING, number, percent, short
from diagnosis.report.messages import Messages
from evaluation.run_record import finite

Comparison = dict[str, Any]
FIGURES = ("loss", "spread", "seeds", "final", "bits", "position", "repetition", "speed", "time", "to", "state")


def headings(found: Comparison, messages: Messages) -> list[str]:
    """Return the headings of FIGURES."""
    axis = messages(f"axis.{found['by'] or 'tokens'}")
    named = {"to": messages("table.to", axis=axis, loss=found["loss"]) if finite(found["loss"]) else ""}
    return [named.get(name) or messages(f"table.{name}") for name in FIGURES if _is_shown(name, found)]


def cells(experiment: dict[str, Any], found: Comparison, messages: Messages) -> list[str]:
    """Return the figures of one experiment, in the order of the headings."""
    runs, axis = experiment["runs"], found["by"] or "tokens"
    in_bits = found["unit"] == "bits_per_byte"
    values = {
        "loss": number(experiment["mean"], 4),
        "spread": number(experiment["spread"], 4),
        "seeds": str(len(experiment["seeds"]) or MISSING),
        "final": _mean(
            runs, lambda run: run["final_bits_per_byte" if in_bits else "final_loss"], lambda v: number(v, 4)
        ),
        "bits": _mean(runs, lambda run: run["best_bits_per_byte"], lambda v: number(v, 3)),
        "position": _counted(messages(f"positions.{run['position']}") for run in runs if run["position"]),
        "repetition": _repetition(runs),
        "speed": _mean(runs, lambda run: run["tokens_per_second"], short),
        "time": _mean(runs, lambda run: run["seconds"], duration),
        "to": _mean(runs, lambda run: run["to_loss"][axis], duration if axis == "time" else short),
        "state": state(runs, messages),
    }
    return [values[name] for name in FIGURES if _is_shown(name, found)]


def _is_shown(name: str, found: Comparison) -> bool:
    return {"bits": found["unit"] != "bits_per_byte", "to": finite(found["loss"])}.get(name, True)


def state(runs: Sequence[dict[str, Any]], messages: Messages) -> str:
    """Return how the runs ended, counted; how far one has come that has not."""
    if len(runs) == 1 and runs[0]["state"] != "finished" and runs[0]["total_steps"]:
        return f"{messages('states.' + runs[0]['state'])} {short(runs[0]['step'])}/{short(runs[0]['total_steps'])}"
    return _counted(messages(f"states.{run['state']}") for run in runs)


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 12.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def measure(found: Comparison, messages: Messages) -> str:
    """Return what the experiments are ordered by."""
    if found["by"] is None or found["at"] is None:
        return messages("table.best")
    at = duration(found["at"]) if found["by"] == "time" else f"{short(found['at'])} {messages('axis.' + found['by'])}"
    return messages("table.at", at=at)


def _mean(
    runs: Sequence[dict[str, Any]], get: Callable[[dict[str, Any]], float | None], show: Callable[[float], str]
) -> str:
    values = [value for run in runs if finite(value := get(run))]
    return show(mean(values)) if values else MISSING


def _repetition(runs: Sequence[dict[str, Any]]) -> str:
    text, true = (_mean(runs, lambda run, key=key: run[key], percent) for key in ("repetition", "true_repetition"))
    return text if MISSING in (text, true) else f"{text} ({true})"


def _counted(words: Any) -> str:
    """Return "finished", or "2 finished, 1 diverged" where they are not all alike."""
    counts = Counter(words)
    if len(counts) < 2:
        return next(iter(counts), MISSING)
    return ", ".join(f"{count} {word}" for word, count in counts.most_common())

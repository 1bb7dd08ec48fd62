"""A comparison as lines for the terminal; the figures of an experiment are the same on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from common.console import human_time
from diagnosis.report.format import MISSING, excerpt, number, percent, short
from diagnosis.report.messages import Messages
from diagnosis.report.terminal import aligned, wrap
from evaluation.run_record import finite
from experiments.comparison import BITS, LOCALES

Comparison = dict[str, Any]
MOST_PAIRS, MOST_DIFFERENCES, LONGEST_CELL = 12, 20, 28


def screen(found: Comparison) -> str:
    """Return the lines to print: the table, what differs, the verdict, the pairs, notes."""
    messages = Messages(found["language"], LOCALES)
    title = messages("table.experiments", measure=measure(found, messages), unit=messages(found["unit"]))
    rows = [figures(row, found, messages) for row in found["experiments"]]
    lines = table(
        [messages("table.name"), *rows[0]],
        [[row["label"], *cells.values()] for row, cells in zip(found["experiments"], rows, strict=True)],
    )
    parts = [
        [title, *lines],
        _differences(found, messages),
        wrap(messages("space").join(found["verdict"])),
        _pairs(found["pairs"], messages),
        [messages("table.notes"), *(line for note in found["notes"] for line in wrap(note, "  "))]
        if found["notes"]
        else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: the first column and the last to the left, the figures between to the right."""
    return aligned([head, *rows], right=range(1, len(head) - 1))


def _differences(found: Comparison, messages: Messages) -> list[str]:
    differing = list(found["differences"].items())
    if not differing:
        return []
    rows = [
        [name, *(excerpt(value, LONGEST_CELL) for value in values)] for name, values in differing[:MOST_DIFFERENCES]
    ]
    head = [messages("page.setting"), *(f"[{k}]" for k in range(1, len(found["experiments"]) + 1))]
    if len(found["experiments"]) > 6:  # a line for each setting with all its values would be too long
        rows = [[name, ", ".join(dict.fromkeys(values))[:80]] for name, *values in rows]
        head = [messages("page.setting"), ""]
    lines = [messages("table.differences"), *table(head, rows)]
    if len(differing) > MOST_DIFFERENCES:
        lines.append("  " + messages("table.more", count=len(differing) - MOST_DIFFERENCES))
    return lines


def _pairs(pairs: Sequence[dict[str, Any]], messages: Messages) -> list[str]:
    if not pairs:
        return []
    lines = [messages("table.pairs")]
    for pair in pairs[:MOST_PAIRS]:
        text = messages("table.pair", **{key: pair[key] for key in ("worse", "better", "difference")})
        if pair["p"] is not None:
            text += messages("table.margin", margin=pair["margin"], p=pair["p"])
        lines += wrap(f"{text}{messages('page.colon')}{answer(pair, messages)}", "  ")
    if len(pairs) > MOST_PAIRS:
        lines.append("  " + messages("table.more", count=len(pairs) - MOST_PAIRS))
    return lines


def answer(pair: dict[str, Any], messages: Messages) -> str:
    """Return whether the difference is more than noise, in a word or three."""
    return messages({True: "table.yes", False: "table.no", None: "table.unknown"}[pair["differs"]])


# --- the figures of an experiment -------------------------------------------------------------------------------------


def figures(experiment: dict[str, Any], found: Comparison, messages: Messages) -> dict[str, str]:
    """Return headings and cells of one experiment: means over the runs that are judged, or over all if none is."""
    runs = [run for run in experiment["runs"] if run["value"] is not None] or experiment["runs"]
    axis, in_bits = found["by"] or "tokens", found["unit"] == BITS

    def averaged(key: str, show: Callable[[float], str]) -> str:
        known = [run[key] for run in runs if finite(run[key])]
        return show(mean(known)) if known else MISSING

    def to_4(value: float | None) -> str:
        return number(value, 4)

    reached = [run["to_loss"][axis] for run in runs if finite(run["to_loss"][axis])]
    repetition, true = (averaged(key, percent) for key in ("repetition", "true_repetition"))
    cells = {
        "loss": to_4(experiment["mean"]),
        "spread": to_4(experiment["spread"]),
        "seeds": str(len(experiment["seeds"]) or MISSING),
        "final": averaged("final_bits_per_byte" if in_bits else "final_loss", to_4),
        "bits": averaged("best_bits_per_byte", lambda bits: number(bits, 3)),
        "position": _counted(messages(f"positions.{run['position']}") for run in runs if run["position"]),
        "repetition": repetition if MISSING in (repetition, true) else f"{repetition} ({true})",
        "speed": averaged("tokens_per_second", short),
        "time": averaged("seconds", human_time),
        "to": (human_time if axis == "time" else short)(mean(reached)) if reached else MISSING,
        "state": state(experiment["runs"], messages),
    }
    if in_bits:
        del cells["bits"]
    if not finite(found["loss"]):
        del cells["to"]
    words = {"axis": messages(f"axis.{axis}"), "loss": found["loss"]}
    return {messages(f"table.{name}", **words): cell for name, cell in cells.items()}


def state(runs: Sequence[dict[str, Any]], messages: Messages) -> str:
    """Return how the runs ended, counted; how far one has come that has not."""
    if len(runs) == 1 and runs[0]["state"] != "finished" and runs[0]["total_steps"]:
        return f"{messages('states.' + runs[0]['state'])} {short(runs[0]['step'])}/{short(runs[0]['total_steps'])}"
    return _counted(messages(f"states.{run['state']}") for run in runs)


def measure(found: Comparison, messages: Messages) -> str:
    """Return what the experiments are ordered by."""
    if found["by"] is None or found["at"] is None:
        return messages("table.best")
    at = human_time(found["at"]) if found["by"] == "time" else f"{short(found['at'])} {messages('axis.' + found['by'])}"
    return messages("table.at", at=at)


def _counted(words: Iterable[str]) -> str:
    """Return "finished", or "2 finished, 1 diverged" where they are not all alike."""
    counts = Counter(words)
    if len(counts) < 2:
        return next(iter(counts), MISSING)
    return ", ".join(f"{count} {word}" for word, count in counts.most_common())

"""What a race came to: where our curve comes down to the peer's end, in ratios, words and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORDS = {"best": "best precision", "equal": "the peer's precision", "same_tokenizer": "the peer's tokenizer"}


def crossing(curve: Sequence[dict[str, Any]], bits_per_byte: float) -> dict[str, float] | None:
    """Where the curve first comes down to the value, linear between its points; None if it never does.

    If its first point is below already, that point: nothing is known of what came before it.
    """
    measures = ("step", "tokens", "text_bytes", "seconds", "since_start")
    for number, point in enumerate(curve):
        if point["bits_per_byte"] > bits_per_byte:
            continue
        before = curve[number - 1] if number else point
        fall = before["bits_per_byte"] - point["bits_per_byte"]
        share = (before["bits_per_byte"] - bits_per_byte) / fall if fall else 1.0
        return {name: before[name] + share * (point[name] - before[name]) for name in measures}
    return None


def compare(side: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Ours beside the peer: ratios above 1 are in our favour; None where ours never gets to the peer's final loss."""
    end = theirs["curve"][-1]
    there = crossing(side["curve"], end["bits_per_byte"])
    names = ("seconds", "since_start", "text_bytes")
    speeds = {f"{name}_ratio": side[name] / theirs[name] for name in ("tokens_per_second", "text_bytes_per_second")}
    return (
        {"peers_final_bits_per_byte": end["bits_per_byte"], "reached": there}
        | speeds
        | {f"{name}_ratio": end[name] / there[name] if there else None for name in names}
    )


def verdict(side: dict[str, Any]) -> list[str]:
    """One of our runs in words."""
    found, there = side["against_peer"], side["against_peer"]["reached"]
    end = side["curve"][-1]["bits_per_byte"] if side["curve"] else float("nan")
    lines = [
        f"  {side['precision']}: {side['seconds']:.0f} s of training, {side['start_up']:.0f} s before it, "
        f"{side['paused']:.0f} s of pauses; {end:.3f} bits a byte at the end"
    ]
    if there is None:
        return [*lines, "  it never comes to the peer's final loss"]
    return [
        *lines,
        f"  the peer's final {found['peers_final_bits_per_byte']:.3f} at step {there['step']:.0f}, "
        f"{there['tokens'] / 1e6:.2f} M tokens, {there['text_bytes'] / 1e6:.2f} MB of text: "
        f"{there['seconds']:.0f} s of training, {found['seconds_ratio']:.1f} times faster; "
        f"{there['since_start']:.0f} s from the start, {found['since_start_ratio']:.1f} times; "
        f"{found['text_bytes_ratio']:.1f} times less text",
    ]


def table(result: dict[str, Any]) -> list[str]:
    """Both sides, the search, the curves, in Markdown."""
    peer, text, size = result["peer"], result["text"], result["size"]
    lines = [
        f"{text['documents']:,} documents, {text['bytes'] / 1e6:.2f} MB ({text['train']}); held out "
        f"{text['held_out_bytes']:,} bytes; width {size['width']}, {size['layers']} layers, rows of "
        f"{size['max_seq_len']}; {result['cores']} cores",
        f"{peer['name']} ({peer['source']}): {peer['parameters']:,} parameters, {peer['precision']}, "
        f"lr {peer['chosen']['learning_rate']:g}, batch {peer['chosen']['batch']}; its defaults: "
        f"{peer['recommended']}",
    ]
    if peer.get("from_earlier_run"):
        lines.append("The peer's figures are those of an EARLIER RUN.")
    lines += _search_lines(peer["search"])
    runs, words = dict(result["ours"]), WORDS
    if "best" in runs and runs["best"] == runs.get("equal"):
        del runs["equal"]
        words = WORDS | {"best": "best precision, which is the peer's"}
    sides = {peer["name"]: peer} | {f"ours, {words[name]}": side for name, side in runs.items()}
    lines += [
        "",
        "| | precision | steps | M tokens | training s | start-up s | pauses s | all s | tokens/s | bits a byte |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        lines.append(
            f"| {name} | {side['precision']} | {side['steps']:,} | {side['tokens'] / 1e6:.2f} | "
            f"{side['seconds']:.0f} | {side['start_up']:.0f} | {side['paused']:.0f} | "
            f"{side['command_seconds']:.0f} | {side['tokens_per_second']:,.0f} | "
            f"{side['curve'][-1]['bits_per_byte']:.3f} |"
        )
    for name, side in runs.items():
        lines += [
            "",
            f"ours, {words[name]} ({side['parameters']:,} parameters; "
            f"{side['against_peer']['tokens_per_second_ratio']:.1f} times the peer's tokens a second, "
            f"{side['against_peer']['text_bytes_per_second_ratio']:.1f} times its text)",
            *verdict(side),
        ]
    lines += [
        "",
        "Padding is not counted as tokens. Start-up is all before the first step, our prepare.py included; "
        "pauses are the peer's saves and our evaluations, left out of all other seconds but the last (all).",
    ]
    for name, side in sides.items():
        lines += ["", f"| {name}: step | M tokens | MB of text | training s | bits a byte |", "|---|---|---|---|---|"]
        lines += [
            f"| {p['step']:,} | {p['tokens'] / 1e6:.2f} | {p['text_bytes'] / 1e6:.2f} | {p['seconds']:.0f} | "
            f"{p['bits_per_byte']:.3f} |"
            for p in side["curve"]
        ]
    return lines


def _search_lines(found: dict[str, Any]) -> list[str]:
    if found.get("given"):
        return ["its rate and batch were given, not searched for"]
    trials = "; ".join(
        f"lr {trial['settings']['learning_rate']:g}, batch {trial['settings']['batch']}: {trial['bits_per_byte']:.3f}"
        for trial in found["trials"]
    )
    ended = "" if found["complete"] else ", ended by the budget"
    return [
        f"its rate and batch: {len(found['trials'])} runs over {found['documents']:,} documents, "
        f"{found['cost_seconds']:.0f} of {found['budget_seconds']:.0f} s{ended}: {trials} bits a byte"
    ]

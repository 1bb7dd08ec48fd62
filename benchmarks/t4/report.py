"""The cost model's result as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.t4.figures import LEVELS, Level

REFERENCE = 300.0  # minutes an epoch of the reference run (docs/dev/reference-run.md)


def table(result: dict[str, Any]) -> list[str]:
    """Return the lines of all tables."""
    return [
        *_parts_table(result["steps"], "plain kernels"),
        "",
        *_parts_table(result["fused_steps"], "fused kernels"),
        "",
        *_epoch_lines(result),
        "",
        *_changes_table(result),
        *_best_lines(result),
        "",
        *_check_lines(result["checks"]),
        "",
        *_figures_table(result["figures"]),
    ]


def _parts_table(steps: dict[Level, dict[str, float]], title: str) -> list[str]:
    whole = {level: sum(parts.values()) for level, parts in steps.items()}
    rows = sorted(steps["mid"], key=lambda name: -steps["mid"][name])
    return [
        f"One optimizer step of each of two T4s, {title}: 4 micro-batches of 32 x 512, fp16, ZeRO-2, AdamW. "
        "Milliseconds.",
        "",
        "| part | slow | mid | fast | share (mid) |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(f'{1e3 * steps[level][name]:,.0f}' for level in LEVELS)} | "
            f"{steps['mid'][name] / whole['mid']:.1%} |"
            for name in rows
        ),
        f"| all | {' | '.join(f'{1e3 * whole[level]:,.0f}' for level in LEVELS)} | 100% |",
    ]


def _epoch_lines(result: dict[str, Any]) -> list[str]:
    epochs, kinds = result["epochs"], result["kinds"]
    counted = ", ".join(
        f"{kind} {total['calls']:,} calls, {total['flops'] / 1e12:.2f} TFLOP, {total['bytes'] / 1e9:.1f} GB"
        for kind, total in sorted(kinds.items())
    )
    mid = epochs["mid"]
    return [
        f"Counted in one micro-batch: {counted}. The model's own FLOPs are {result['model_flops'] / 1e12:.2f} T.",
        f"Epoch of {result['tokens'] / 1e6:,.0f} M tokens on two T4s: {mid['minutes']:.0f} minutes "
        f"({epochs['fast']['minutes']:.0f} fast, {epochs['slow']['minutes']:.0f} slow) at "
        f"{mid['tokens_per_second']:,.0f} tokens/s ({epochs['slow']['tokens_per_second']:,.0f} to "
        f"{epochs['fast']['tokens_per_second']:,.0f}); of it evaluations {mid['evaluating']:.1f} and checkpoints "
        f"{mid['saving']:.1f} minutes. The reference run took {REFERENCE:.0f}, the aim is {result['aim']:.0f}.",
        "A rank sends in a step, hidden or not: "
        + ", ".join(
            f"{sizes['reduced'] / 1e6:,.0f} MB of gradients with {stage}"
            for stage, sizes in result["communicated"].items()
        )
        + f", and {result['communicated']['ZeRO-2']['sent back'] / 1e6:,.0f} MB of weights with either.",
        f"The host starts a step's operations in {1e3 * mid['host']:,.0f} ms ({1e3 * epochs['fast']['host']:,.0f} to "
        f"{1e3 * epochs['slow']['host']:,.0f}), beside {1e3 * mid['step']:,.0f} ms of the GPU: "
        f"{'hidden' if mid['host'] < mid['step'] else 'NOT hidden'}.",
        "If the matrix units sustain 24 TFLOP/s and all else is mid: "
        + ", ".join(f"{title} {minutes:.0f} minutes" for title, minutes in result["sustained"].items())
        + ".",
        f"Matrix products and attention of the model alone, nothing moved: {result['floor']['mid']:.0f} minutes "
        f"({result['floor']['fast']:.0f} to {result['floor']['slow']:.0f}).",
    ]


def _changes_table(result: dict[str, Any]) -> list[str]:
    aim = result["aim"]
    return [
        "What would have to change: minutes an epoch, each line with the changes of those above it.",
        "",
        "| change | slow | mid | fast | tokens/s (mid) | aim |",
        "|---|---|---|---|---|---|",
        *(_change(line, aim) for line in result["lines"] if line["cumulative"]),
        *(
            _change({**line, "title": f"*alone:* {line['title']}"}, aim)
            for line in result["lines"]
            if not line["cumulative"]
        ),
    ]


def _best_lines(result: dict[str, Any]) -> list[str]:
    parts, whole = result["best"], sum(result["best"].values())
    shares = sorted(parts.items(), key=lambda part: -part[1])[:6]
    return [
        "",
        "With every change, where the time goes (mid): "
        + ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in shares)
        + ".",
    ]


def _change(line: dict[str, Any], aim: float) -> str:
    minutes = " | ".join(f"{line[level]['minutes']:.0f}" for level in LEVELS)
    reached = next((level for level in LEVELS if line[level]["minutes"] <= aim), None)
    return (
        f"| {line['title']}{'' if line['fits'] else ' (does not fit 16 GB)'} | {minutes} | "
        f"{line['mid']['tokens_per_second']:,.0f} | {f'reached ({reached})' if reached else '-'} |"
    )


def _check_lines(checks: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"A pass on this CPU, counted and priced in the same way, {check['dtype']}, one thread, {check['rows']} x "
        f"{check['seq_len']}: predicted {check['predicted']:.2f} s, measured {check['measured']:.2f} s, "
        f"measured / predicted = {check['ratio']:.2f} ({check['matrix'] / 1e9:,.0f} GFLOP/s in products, "
        f"{check['attention'] / 1e9:,.0f} and {check['attention_backward'] / 1e9:,.0f} in "
        f"attention, {check['bandwidth'] / 1e9:.1f} GB/s). Seconds by kind, predicted and measured one by one: "
        + ", ".join(
            f"{kind} {one['predicted']:.2f} and {one['measured']:.2f}" for kind, one in sorted(check["kinds"].items())
        )
        + "."
        for check in checks
    ]


def _figures_table(figures: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "| figure | slow | mid | fast | where it was measured | remarks |",
        "|---|---|---|---|---|---|",
        *(
            " ".join(
                (
                    "|",
                    ", ".join(filter(None, (figure["name"], figure["unit"]))),
                    "|",
                    f"{figure['slow']:g}",
                    "|",
                    f"{figure['mid']:g}",
                    "|",
                    f"{figure['fast']:g}",
                    "|",
                    figure["source"],
                    "|",
                    figure["note"],
                    "|",
                )
            )
            for figure in figures
        ),
    ]

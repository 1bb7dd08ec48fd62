"""A run carried over other numbers of processes and other placements of its experts.

The micro-batch stays (the balancing loss is that of a micro-batch, so another one is another training), and the
accumulation makes up for the processes. Then only the order of sums differs. Training amplifies even that, at a high
rate above all, where a token whose experts score alike goes elsewhere; so the rate is a low one here.
"""

from __future__ import annotations

import math
from pathlib import Path
from signal import SIGTERM

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.workplace import BATCH, Workplace

CATEGORY = "other numbers of processes"
RATE = "optimizer.params.lr=1e-4"
LIMIT = 1e-5  # largest difference allowed in a loss (nats) and in a weight
MICRO_BATCH = 2
# (processes, ep_size) of each session, and the share of the steps after which it is stopped
CARRIED = {
    "2, 1, 4, 2 processes": (((2, 1), 0.25), ((1, 1), 0.5), ((4, 1), 0.75), ((2, 1), 1.0)),
    "ep_size 1, 2, 1 on 2 processes": (((2, 1), 0.3), ((2, 2), 0.7), ((2, 1), 1.0)),
    "2 processes of ep_size 2, 1 process, 4 of ep_size 2": (((2, 2), 0.3), ((1, 1), 0.6), ((4, 2), 1.0)),
}


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """Each way, against two processes with ep_size 1 that nothing interrupts."""
    reference = work.reference("reference-elastic", more=_settings(2))
    for number, (name, sessions) in enumerate(CARRIED.items(), 1):
        trial, run_folder = Trial(CATEGORY, name), work.fresh(f"carried-{number}")
        for (processes, ep_size), share in sessions:
            if trial.survived:
                _carry(work, trial, run_folder, processes, ep_size, round(share * work.pace.steps))
        if trial.survived:
            _judge(trial, run_folder, reference)
        journal.add(trial)
    _impossible_batch(work, journal, reference)


def _settings(processes: int) -> list[str]:
    """Of the JSON, the same micro-batches whatever the number of processes."""
    return [
        RATE,
        f"train_micro_batch_size_per_gpu={MICRO_BATCH}",
        f"gradient_accumulation_steps={BATCH // MICRO_BATCH // processes}",
    ]


def _carry(work: Workplace, trial: Trial, run_folder: Path, processes: int, ep_size: int, end: int) -> None:
    """One session, asked to stop at step `end` unless that is the last."""
    before = compare.last_step(run_folder)
    flags = work.flags(run_folder, *_settings(processes), "--ep_size", ep_size)
    with work.session(flags, f"{processes}-processes-ep{ep_size}", processes=processes) as session:
        if end < work.pace.steps:
            session.wait_until(lambda: compare.last_step(run_folder) >= end)
            session.send(SIGTERM, "ranks")
        status = session.wait_end()
        trial.expect(status == 0, f"{session.log.name} ended with {status}: {session.output[-400:]}")
        trial.expect(
            session.announced == before or not before,
            f"{session.log.name} continued from step {session.announced}, not from {before}",
        )


def _judge(trial: Trial, run_folder: Path, reference: Path) -> None:
    for figure in ("loss", "grad_norm"):
        trial.facts[f"largest difference of {figure}"] = compare.figure_difference(run_folder, reference, figure)
    trial.facts["of validation loss"] = compare.figure_difference(run_folder, reference, "loss", "val")
    trial.facts["of a weight"] = compare.weight_difference(run_folder, reference)
    steps = [row["step"] for row in compare.rows(run_folder / "metrics.jsonl") if row["split"] == "train"]
    trial.expect(len(steps) == len(set(steps)), "a step stands twice in metrics.jsonl")
    for name in ("largest difference of loss", "of validation loss", "of a weight"):
        trial.expect(
            math.isfinite(trial.facts[name]) and trial.facts[name] <= LIMIT,
            f"{name}: {trial.facts[name]:.3g}, limit {LIMIT}",
        )


def _impossible_batch(work: Workplace, journal: Journal, reference: Path) -> None:
    """The flags of two processes on one: refused with the accumulation that would keep the batch."""
    trial = Trial(CATEGORY, "a batch that one process cannot keep is refused")
    copy = work.copy(reference, "refused")
    with work.session(work.flags(copy, *_settings(2)), "refused", processes=1) as session:
        status = session.wait_end()
    said = [line for line in session.said if "gradient_accumulation_steps" in line]
    trial.facts = {"log": session.log.name, "exit status": status, "said": said[0].strip() if said else None}
    trial.expect(status == 2, f"exit status {status}")
    needed = f"gradient_accumulation_steps={BATCH // MICRO_BATCH}"
    trial.expect(any(needed in line for line in said), f"no line names {needed}: {session.output[-300:]}")
    journal.add(trial)

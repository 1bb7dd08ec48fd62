"""Numbers that go wrong: rows of the corpus whose loss is not a number, with --on_divergence stop and rollback."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGKILL

from corpus.shards import Corpus
from stress.chaos import compare
from stress.chaos.child import POISON
from stress.chaos.damage import checkpoints
from stress.chaos.record import Journal, Trial
from stress.chaos.session import Session
from stress.chaos.workplace import BATCH, SIZES, Workplace
from training.data_sampler import SampleStream

CATEGORY = "numbers go wrong"
SEED = 42  # train.py's own
BAD_STEP = 28  # with index from 0: between two saves
CHILD = ("--module", "stress.chaos.child")


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """One bad row: stop, and roll back; several in a row: roll back too often."""
    _stop(work, journal)
    _rollback(work, journal)
    _too_often(work, journal)


def rows_of_step(work: Workplace, step: int) -> list[int]:
    """The corpus's rows that step `step` (from 0) trains on."""
    corpus = Corpus.open(work.corpus, verify="size")
    stream = SampleStream(corpus.split("train").num_rows(SIZES["max_seq_len"]), SEED)
    return [stream[step * BATCH + place] for place in range(BATCH)]


def _session(work: Workplace, run_folder: Path, rows: list[int], *more: object) -> Session:
    with work.session(
        work.flags(run_folder, *more), "divergence", script=CHILD, environment={POISON: ",".join(map(str, rows))}
    ) as session:
        session.wait_end()
    return session


def _stop(work: Workplace, journal: Journal) -> None:
    """The run stops with a report, and the checkpoint before it is named and whole."""
    trial, run_folder = Trial(CATEGORY, "--on_divergence stop"), work.fresh("diverged")
    row = rows_of_step(work, BAD_STEP)[0]
    session = _session(work, run_folder, [row], "--on_divergence", "stop")
    status, output = session.runner.returncode, session.output
    newest = checkpoints(run_folder)[-1]
    trial.facts = {"log": session.log.name, "exit status": status, "said": _told(session)}
    trial.expect(status not in (0, None), f"exit status {status}")
    for part, what in (
        (f"{BAD_STEP + 1}", "the step"),
        (newest.name, "the last good checkpoint"),
        (f"{row}", "the row"),
    ):
        trial.expect(part in output, f"the report does not name {what} ({part})")
    trial.expect(int(newest.name.removeprefix("step-")) <= BAD_STEP, f"{newest.name} was saved after the fault")
    trial.expect(not session.traceback, "a traceback on the terminal")
    journal.add(trial)


def _rollback(work: Workplace, journal: Journal) -> None:
    """The run goes back, leaves the batch out, and finishes; interrupted after that it still knows what it left out."""
    trial, run_folder = Trial(CATEGORY, "--on_divergence rollback"), work.fresh("rolled-back")
    rows = rows_of_step(work, BAD_STEP)[:1]
    session = _session(work, run_folder, rows, "--on_divergence", "rollback")
    _finished(trial, session, run_folder, work)
    journal.add(trial)
    again = Trial(CATEGORY, "--on_divergence rollback, killed after it and continued")
    second = work.fresh("rolled-back-and-killed")
    flags = work.flags(second, "--on_divergence", "rollback")
    with work.session(flags, "divergence", script=CHILD, environment={POISON: str(rows[0])}) as killed:
        killed.wait_until(lambda: compare.last_step(second) >= BAD_STEP + 8)
        killed.send(SIGKILL, "runner", "launch", "ranks")
    session = _session(work, second, rows, "--on_divergence", "rollback")
    _finished(again, session, second, work)
    if again.survived and trial.survived:
        again.problems += compare.differences(second, run_folder)
    journal.add(again)


def _too_often(work: Workplace, journal: Journal) -> None:
    """Every batch from some step on is bad: it gives up after --max_rollbacks."""
    trial = Trial(CATEGORY, "--on_divergence rollback --max_rollbacks 2, every batch bad")
    run_folder = work.fresh("given-up")
    rows = [row for step in range(BAD_STEP, work.pace.steps) for row in rows_of_step(work, step)]
    session = _session(work, run_folder, rows, "--on_divergence", "rollback", "--max_rollbacks", 2)
    trial.facts = {"log": session.log.name, "exit status": session.runner.returncode, "said": _told(session)}
    trial.expect(session.runner.returncode not in (0, None), f"exit status {session.runner.returncode}")
    trial.expect("--max_rollbacks" in session.output, "no line says that --max_rollbacks is used up")
    trial.expect(not session.traceback, "a traceback on the terminal")
    journal.add(trial)


def _finished(trial: Trial, session: Session, run_folder: Path, work: Workplace) -> None:
    trial.facts = {"log": session.log.name, "said": _told(session)}
    trial.expect(session.runner.returncode == 0, f"exit status {session.runner.returncode}: {session.output[-300:]}")
    if session.runner.returncode == 0:
        summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
        trial.expect(summary["steps"] == work.pace.steps, f"ended at step {summary['steps']}")
        steps = [row["step"] for row in compare.rows(run_folder / "metrics.jsonl") if row["split"] == "train"]
        trial.expect(sorted(steps) == list(range(1, work.pace.steps + 1)), "steps missing or double in metrics.jsonl")
        trial.expect(
            None not in [row["loss"] for row in compare.rows(run_folder / "metrics.jsonl")],
            "a loss that is no number stayed in metrics.jsonl",
        )


def _told(session: Session) -> str | None:
    lines = [line.strip() for line in session.said if "DIVERGED" in line or line.startswith("  back at")]
    return "; then ".join(lines[:2])[:500] if lines else None

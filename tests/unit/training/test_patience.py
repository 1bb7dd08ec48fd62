"""--patience: what counts as an evaluation without progress, and that a run stops by it, once, with the best kept."""

import json
import math
import re
import sys

import pytest

from common.errors import UserError
from training.checkpointing.checkpoint import RunState
from training.config.command_line import file_flags, options, parse


def judged(*losses):
    state = RunState()
    for step, loss in enumerate(losses, 1):
        state.step = step
        state.update_best(loss)
    return state


def test_a_better_loss_starts_the_count_anew():
    state = judged(5.0, 5.1, 4.9, 4.95, 4.91)
    assert (state.best_loss, state.best_step, state.evals_since_best) == (4.9, 3, 2)


def test_an_equal_loss_is_not_better():
    assert judged(5.0, 5.0).evals_since_best == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_never_the_best(loss):
    state = judged(loss, 5.0, loss)
    assert (state.best_loss, state.best_step, state.evals_since_best) == (5.0, 2, 1)


def test_the_evaluation_before_the_first_step_does_not_count():
    state = RunState(step=0)
    assert not state.update_best(1.0)
    assert (state.best_loss, state.evals_since_best) == (None, 0)


@pytest.mark.parametrize(
    ("patience", "losses", "lost"),
    [
        (None, [5.0] * 9, False),
        (2, [5.0, 5.1], False),
        (2, [5.0, 5.1, 5.2], True),
        (1, [5.0, 4.9, 4.8], False),
        (1, [math.nan], True),
    ],
)
def test_patience(patience, losses, lost):
    assert (judged(*losses).early_stopping(patience) is not None) == lost


def test_the_reason_names_the_best():
    assert judged(5.0, 4.5, 4.6, 4.7).early_stopping(2) == (
        "no better validation loss than 4.500 at step 2 in 2 evaluations (--patience 2)"
    )


def test_the_flag_and_the_block_take_a_count():
    assert parse(["--patience", "3"], "") == {"patience": 3}
    assert options({}, {"patience": 4}).patience == 4
    assert options({}, {}).patience is None
    with pytest.raises(UserError, match=r"patience.*0 is too small"):
        parse(["--patience", "0"], "")
    with pytest.raises(UserError, match=r"bufudu\.patience: 0 is too small"):
        file_flags({"bufudu": {"patience": 0}}, "x.json")


@pytest.mark.slow
def test_a_run_stops_by_it_keeps_the_best_and_stays_stopped(processes, flags, train_py, workplace):
    """At this rate the loss gets worse; the count goes on in a second session."""
    run = workplace / "runs" / "impatient"
    command = [
        sys.executable,
        train_py,
        *flags(
            "runs/impatient",
            "--skip_preflight",
            "--max_steps",
            "40",
            "--eval_interval",
            "2",
            "--save_interval",
            "3",
            "--log_interval",
            "10",
            "--patience",
            "3",
            "--set",
            "optimizer.params.lr=0.3",
            "scheduler.params.warmup_num_steps=10",
        ),
    ]
    done = processes.finish(processes.start(command))
    assert done.status == 0, done.output
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    val = {row["step"]: row["loss"] for row in rows if row["split"] == "val" and row["step"]}
    best = min(val, key=val.get)
    assert summary["reason"] == (
        f"no better validation loss than {val[best]:.3f} at step {best} in 3 evaluations (--patience 3)"
    )
    assert summary["steps"] == best + 6 < 40
    assert (summary["best_step"], summary["best_val_loss"]) == (best, val[best])
    assert f"{summary['reason']}: {best + 6} of 40 steps" in done.output
    again = processes.finish(processes.start(command))
    assert again.status == 0
    assert re.search(r"impatient has stopped already: no better .*; a larger --patience continues it", again.output)
    assert json.loads((run / "summary.json").read_text()) == summary
    more = processes.finish(processes.start([*command, "--patience", "4"]))
    assert more.status == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == best + 8

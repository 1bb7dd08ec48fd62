"""--budget: how many steps fit, what is said of it, and a run that is carried over two sessions."""

import json
import re
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from common.errors import UserError
from training.checkpointing.run_state import RunState
from training.config import command_line
from training.config.command_line import Options
from training.evaluation.validation import intervals
from training.planning.budget import Costs, outlook, preflight_seconds, run_seconds, total_steps

HOUR = 3600
COSTS = Costs(step=1.0, evaluation=10.0, sample=3.0, save=5.0, build=10.0, setup=60.0)
FREE = Costs(step=1.0, evaluation=0.0, sample=0.0, save=0.0, build=0.0, setup=0.0)


def test_without_anything_else_the_budget_is_all_steps():
    assert total_steps(25 * HOUR, 0, FREE, Options()) == 25 * HOUR
    assert total_steps(25 * HOUR, HOUR, FREE, Options()) == 24 * HOUR
    assert total_steps(25 * HOUR, 0, replace(FREE, step=1.02), Options()) == 88_235


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(eval_interval=50),
        Options(save_interval=7, sample_interval=3),
        Options(time_limit=11.5 * HOUR),
        Options(eval_interval=10**6),
    ],
)
@pytest.mark.parametrize("budget", [300, 1_800, 7 * HOUR, 25 * HOUR, 1000 * HOUR])
def test_the_run_fits_and_one_evaluation_more_would_not(budget, options):
    steps, spent = total_steps(budget, 100, COSTS, options), 100
    sessions = -(-budget // options.time_limit) if options.time_limit else 1
    taken = spent + run_seconds(steps, COSTS, options) + (sessions - 1) * (COSTS.setup + COSTS.save)
    assert budget - (COSTS.step + COSTS.evaluation + COSTS.sample + COSTS.save) < taken <= budget


def test_what_a_run_takes_is_counted_as_the_loop_does_it():
    """Before the first step and after the last there is an evaluation and a sample, after the last a save."""
    options = Options(eval_interval=3, sample_interval=6, save_interval=5)
    assert run_seconds(12, COSTS, options) == 12 * 1.0 + 5 * 10.0 + 3 * 3.0 + 3 * 5.0
    assert run_seconds(13, COSTS, options) == 13 * 1.0 + 6 * 10.0 + 4 * 3.0 + 3 * 5.0


def test_the_intervals_follow_the_length():
    assert intervals(Options(), 40_000).evaluation == 1000
    assert intervals(Options(), 400).evaluation == 20
    assert intervals(Options(), 400).sample == 40
    assert intervals(Options(eval_interval=7, sample_interval=9), 400).evaluation == 7


def checked(micro, step, *, seq_len=512, micro_batch=4, precision="bf16"):
    """Seconds set aside for the checks of a run without accumulation."""
    run = SimpleNamespace(
        options=Options(max_seq_len=seq_len),
        resolved=SimpleNamespace(micro_batch=micro_batch, accumulation=1, precision=precision),
    )
    return preflight_seconds(run, replace(FREE, build=2.0), SimpleNamespace(micro=micro, step=step))


def test_the_checks_are_given_what_they_take_and_a_minute_at_most():
    # 35 steps of two of the four rows, and an engine
    assert checked(0.2, 0.1) == pytest.approx(2 + 35 * (0.1 + 0.1))
    assert checked(0.2, 0.1, micro_batch=2) == pytest.approx(2 + 35 * (0.2 + 0.1))
    assert checked(0.2, 0.1, seq_len=4096, micro_batch=1) == pytest.approx(2 + 35 * (0.2 + 0.1))
    assert checked(0.2, 0.1, precision="fp16") == pytest.approx(2 + 49 * (0.1 + 0.1))
    assert checked(9.0, 1.0) == 60


def test_a_slower_machine_or_a_longer_set_up_never_gives_more_steps():
    steps = [
        total_steps(HOUR, spent, replace(COSTS, step=step), Options())
        for spent, step in ((60, 1.0), (60, 1.1), (600, 1.1), (600, 2.0))
    ]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 4


def test_a_budget_too_short_for_a_step_says_what_one_takes():
    with pytest.raises(UserError, match=r"--budget 1 min 00 s is too short.* take about 1 min 32 s here; give more"):
        total_steps(60, 60, COSTS, Options())  # 60 + a step + 2 evaluations + 2 samples + a save
    assert total_steps(92, 60, COSTS, Options()) == 1


def said(spent, steps_left, pace):
    return outlook(RunState(total_steps=steps_left, wall_seconds=spent - HOUR, pace=pace), 25 * HOUR, HOUR)


def test_the_outlook_of_a_run_that_continues():
    assert said(12 * HOUR, 45_000, 1.0) == (
        "budget: 13 h 00 min left of 25 h 00 min; 45,000 more steps at 1 s, as in the last session, take "
        "12 h 30 min: it ends 30 min 00 s before"
    )
    late = said(12 * HOUR, 45_000, 1.2)
    assert late.startswith("WARNING: budget: 13 h 00 min left")
    assert late.endswith("take 15 h 00 min: 2 h 00 min too long, and the schedule stays as it is")
    assert said(12 * HOUR, 45_000, None).endswith("for 45,000 more steps")
    assert "used up, and 1 h 00 min more" in said(26 * HOUR, 10, 1.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "3"], "--epochs says how long the run is, too"),
        (["--max_steps", "9", "--epochs", "3"], "--epochs and --max_steps say how long the run is, too"),
    ],
)
def test_one_length_is_enough(flags, words):
    with pytest.raises(UserError, match=words):
        command_line.parse(["--budget", "25h", *flags], "")


def test_the_budget_is_a_duration():
    assert command_line.parse(["--budget", "25h"], "") == {"budget": 25 * HOUR}
    with pytest.raises(UserError, match="write it like 11h30m"):
        command_line.parse(["--budget", "tomorrow"], "")


def test_only_the_command_line_can_give_a_budget():
    assert "budget" not in command_line.run_flags()


@pytest.fixture
def session(processes, flags, train_py):
    """Starts a session of a run of ten minutes, and asks it to stop after its tenth step; returns what it said."""
    given = flags("runs/budget", "--eval_interval", 400, "--sample_interval", 4000, "--log_interval", 10)
    at = given.index("--max_steps")
    command = [sys.executable, train_py, *given[:at], *given[at + 2 :], "--budget", "10m"]

    def run(step):
        process = processes.start(command)
        process.wait_until(lambda: re.search(rf"^step {step}/", process.output, re.MULTILINE), f"step {step}")
        process.send_signal(signal.SIGTERM)
        done = processes.finish(process)
        assert done.status == 0, done.output
        return done.output

    return run


@pytest.mark.slow
def test_the_length_is_worked_out_once_and_kept(session, workplace):
    run = workplace / "runs" / "budget"
    said = session(10)
    steps = re.search(
        r"^budget: 10 min 00 s at [\d.e-]+ s a step, evaluations and saves included: ([\d,]+) steps "
        r"\([\d.]+ epochs\)$",
        said,
        re.MULTILINE,
    )[1]
    assert f"training: {steps} steps of" in said
    assert "total_num_steps: auto -> " + steps + " (--budget)" in said
    assert not (run / "measuring").exists()
    steps = int(steps.replace(",", ""))
    found = json.loads((run / "summary.json").read_text())
    assert (found["total_steps"], found["reason"]) == (steps, "stopped by SIGTERM")
    assert json.loads((run / "ds_config.json").read_text())["scheduler"]["params"]["total_num_steps"] == steps
    said = session(found["steps"] // 10 * 10 + 10)
    assert "measuring" not in said
    left = steps - found["steps"]
    assert re.search(rf"^(WARNING: )?budget: \d min .* left of 10 min 00 s; {left:,} more steps at", said, re.MULTILINE)
    assert json.loads((run / "summary.json").read_text())["total_steps"] == steps

"""`--budget 25h`: a schedule that ends when a total of time over all sessions is used up.

The learning rate falls with the length of the run, so that length must be known before the first step. It is worked out
from what the parts of the run take on this machine, measured on a trial engine, and kept from then on.
"""

from __future__ import annotations

import math
import shutil
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from common.console import human_time
from common.errors import UserError
from corpus.tokenizer import load_tokenizer
from training.checkpointing import checkpoint
from training.checkpointing.export import export_model
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import DiskFull
from training.config.command_line import Options
from training.context import RunContext
from training.evaluation.generation import RepetitionEvaluator, SampleWriter
from training.evaluation.validation import intervals
from training.preflight.cost_checks import (
    Cost,
    OutOfMemory,
    allocations,
    check_out_of_memory,
    measure_cost,
    slowest,
)
from training.preflight.runner import SECONDS as PREFLIGHT_SECONDS
from training.preflight.runner import checked_rows, evaluation_passes
from training.preflight.step_checks import OVERFIT_STEPS
from training.preflight.trial_engine import MAX_ACCUMULATION, MAX_OVERFLOWS, TrialEngine, trial_engine
from training.processes.process_group import broadcast_from_rank0

MEASURED_SECONDS = 20.0  # that the timed steps may take together
_MOST_STEPS = 10**9  # that a run is looked for among
_OTHER_STEPS = 10  # of the preflight, beside those on one batch
_START_SECONDS = 60.0  # that a session takes at most from its start to its engine, once the corpus is prepared
_NEAR = 1.02  # what is longer than what is left by less than this is no news


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a run take, on the slowest rank."""

    step: float
    evaluation: float
    """An evaluation with its text samples and a best model that is kept."""
    sample: float
    save: float
    build: float
    """Building the engine."""
    setup: float
    """One session until its first step, without preparing the corpus."""


def run_seconds(steps: int, costs: Costs, options: Options) -> float:
    """Return the seconds of a run in one session, after its set-up."""
    every = intervals(options, steps)
    return (
        steps * costs.step
        + (1 + math.ceil(steps / every.evaluation)) * costs.evaluation
        + (1 + math.ceil(steps / every.sample)) * costs.sample
        + math.ceil(steps / every.save) * costs.save
    )


def total_steps(budget: float, spent: float, costs: Costs, options: Options) -> int:
    """Return the longest run that fits `budget` seconds, of which `spent` are gone; raise UserError if that is none.

    With a --time_limit there will be more sessions than one, each with a set-up and a save of its own.
    """
    sessions = 1 if options.time_limit is None else math.ceil(budget / options.time_limit)
    left = budget - spent - (sessions - 1) * (costs.setup + costs.save)
    if run_seconds(1, costs, options) > left:
        needed = budget - left + run_seconds(1, costs, options)
        raise UserError(
            f"--budget {human_time(budget)} is too short for a single step: set-up, checks, evaluation and "
            f"save take about {human_time(needed)} here; give more than that"
        )
    return bisect_right(range(_MOST_STEPS), left, key=lambda steps: run_seconds(steps, costs, options)) - 1


def outlook(state: RunState, budget: float, running: float) -> str:
    """Say what is left of the budget, and where the run will end at the speed of the last session (all included).

    `running` are the seconds of this session so far; where there is no speed to go by, the state's `pace` is None.
    """
    left, steps_left = budget - state.wall_seconds - running, (state.total_steps or 0) - state.step
    text = (
        f"budget: {human_time(left)} left of {human_time(budget)}"
        if left > 0
        else f"budget: {human_time(budget)} are used up, and {human_time(-left)} more"
    )
    if state.pace is None:
        return f"{text}, for {steps_left:,} more steps"
    needed = steps_left * state.pace
    text += f"; {steps_left:,} more steps at {state.pace:.3g} s, as in the last session, take {human_time(needed)}"
    if needed > _NEAR * max(0.0, left):
        return f"WARNING: {text}: {human_time(needed - left)} too long, and the schedule stays as it is"
    return f"{text}: it ends {human_time(max(0.0, left - needed))} before"


def work_out(run: RunContext, budget: float) -> tuple[int, Cost]:
    """Return how many steps of `run` fit `budget` seconds, of which this process has used some, and their cost.

    Collective. Raise UserError if the run does not fit into memory or on the disk, or no step fits the budget.
    """
    run.console.say("budget: measuring what a step, an evaluation and a save take, on a trial engine")
    costs, cost = _measure(run)
    ahead = costs.build + (0.0 if run.options.skip_preflight else preflight_seconds(run, costs, cost))
    steps = total_steps(budget, broadcast_from_rank0(lambda: run.stop.elapsed) + ahead, costs, run.options)
    epochs = steps * run.resolved.train_batch / run.corpus.split("train").num_rows(run.options.max_seq_len)
    run.console.say(
        f"budget: {human_time(budget)} at {costs.step:.3g} s a step, evaluations and saves included: "
        f"{steps:,} steps ({epochs:.3g} epochs)"
    )
    return steps, cost


def preflight_seconds(run: RunContext, costs: Costs, cost: Cost) -> float:
    """Return about what the checks will take at most: an engine, and steps on a few rows."""
    rows = checked_rows(run.resolved.micro_batch, run.options.max_seq_len) / run.resolved.micro_batch
    step = min(run.resolved.accumulation, MAX_ACCUMULATION) * cost.micro * rows + cost.step
    other = MAX_OVERFLOWS if run.resolved.precision == "fp16" else _OTHER_STEPS
    return min(PREFLIGHT_SECONDS, costs.build + costs.evaluation + (OVERFIT_STEPS + other) * step)


def _measure(run: RunContext) -> tuple[Costs, Cost]:
    """Measure with a trial engine that takes some steps at learning rate 0, evaluates, writes texts and is saved."""
    started = run.stop.elapsed
    try:
        with allocations(), trial_engine(run) as trial:
            build = run.stop.elapsed - started
            cost = measure_cost(trial, run.resolved.micro_batch, seconds=MEASURED_SECONDS)
            repetition, sample = _text_seconds(run, trial)
            export, save = _writing_seconds(run, trial)
            setup = min(started, _START_SECONDS) + build
            repetition, sample, export, save, build, setup = slowest((repetition, sample, export, save, build, setup))
    except OutOfMemory as error:
        result = check_out_of_memory(error, run.resolved)
        raise UserError(f"{result.text}: {result.hint}") from None
    except DiskFull as error:
        raise UserError(f"{error}: free some space, or give another --output") from None
    evaluation = evaluation_passes(run) * cost.evaluation + repetition + export
    return Costs(cost.whole_step(run.resolved.accumulation), evaluation, sample, save, build, setup), cost


def _text_seconds(run: RunContext, trial: TrialEngine) -> tuple[float, float]:
    """Return the seconds of writing the texts that repetition is counted in, and of a sample."""
    options, val = run.options, run.corpus.split("val")
    length, seed, tokenizer = options.max_seq_len, options.seed, load_tokenizer(run.corpus.tokenizer_path)
    repetition = RepetitionEvaluator(val, run.config, seq_len=length, seed=seed, world=run.world)
    samples = SampleWriter(val, tokenizer, run.config, seq_len=length, seed=seed)
    return (
        _second_time(trial, lambda: repetition.figures(trial.engine)),
        _second_time(trial, lambda: samples.write(trial.engine)),
    )


def _second_time(trial: TrialEngine, work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes the second time, when nothing is compiled or allocated any more."""
    work()
    started = trial.clock()
    work()
    return trial.clock() - started


def _writing_seconds(run: RunContext, trial: TrialEngine) -> tuple[float, float]:
    """Return the seconds of writing a model and a checkpoint, where the run will write them."""
    folder = run.output / "measuring"
    try:
        started = trial.clock()
        export_model(trial.engine, run.config, run.corpus.tokenizer_path, folder / "model")
        export = trial.clock() - started
        return export, checkpoint.save(trial.engine, folder, RunState(), 1, {}).seconds
    finally:
        if run.world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)

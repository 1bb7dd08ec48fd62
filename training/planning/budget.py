"""`--budget 25h`: a schedule that ends when a total of time over all sessions is used up.

The learning rate falls with the length of the run, so that length must be known before the first step. It is worked out
from what the parts of the run take on this machine, measured on a trial engine, and kept from then on.
"""

from __future__ import annotations

import math
import shutil
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from common.console import human_time
from common.errors import UserError
from corpus.tokenizer import load_tokenizer
from evaluation.rows import measured_rows
from training.checkpointing import checkpoint
from training.checkpointing.export import export_model
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import DiskFull
from training.config.command_line import Options
from training.context import RunContext
from training.evaluation.generation import RepetitionEvaluator, SampleWriter
from training.evaluation.validation import evaluate, intervals
from training.preflight import cost_checks
from training.preflight.runner import SECONDS as PREFLIGHT_SECONDS
from training.preflight.runner import checked_rows
from training.preflight.step_checks import OVERFIT_STEPS
from training.preflight.trial_engine import MAX_ACCUMULATION, MAX_OVERFLOWS, TrialEngine, preserved_rng_state
from training.processes.process_group import broadcast_from_rank0, gather_from_ranks

MEASURED_SECONDS = 20.0  # that the timed steps may take together
_MOST_STEPS = 10**9  # that a run is looked for among
_OTHER_STEPS = 10  # of the preflight, beside those on one batch
_PASSES = 4  # micro-batches of a timed evaluation
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


def outlook(budget: float, spent: float, steps_left: int, seconds_a_step: float | None) -> str:
    """Say what is left of the budget, and where the run will end at the speed of the last session (all included).

    `spent` are the seconds of all sessions so far; `seconds_a_step` is None where there is no speed to go by.
    """
    left = budget - spent
    text = (
        f"budget: {human_time(left)} left of {human_time(budget)}"
        if left > 0
        else f"budget: {human_time(budget)} are used up, and {human_time(-left)} more"
    )
    if seconds_a_step is None:
        return f"{text}, for {steps_left:,} more steps"
    needed = steps_left * seconds_a_step
    text += f"; {steps_left:,} more steps at {seconds_a_step:.3g} s, as in the last session, take {human_time(needed)}"
    if needed > _NEAR * max(0.0, left):
        return f"WARNING: {text}: {human_time(needed - left)} too long, and the schedule stays as it is"
    return f"{text}: it ends {human_time(max(0.0, left - needed))} before"


@dataclass(frozen=True)
class Length:
    """The length of a run for its budget: optimizer steps, the line that states them, and what was measured."""

    steps: int
    line: str
    cost: cost_checks.Cost


def work_out(run: RunContext, budget: float) -> Length:
    """Return how many steps of `run` fit `budget` seconds, of which this process has used some; collective.

    Raise UserError if it does not fit into memory or on the disk, or no step fits the budget.
    """
    run.console.say("budget: measuring what a step, an evaluation and a save take, on a trial engine")
    costs, cost = _measure(run)
    ahead = costs.build + (0.0 if run.options.skip_preflight else preflight_seconds(run, costs, cost))
    spent = broadcast_from_rank0(lambda: run.stop.elapsed) + ahead
    steps = total_steps(budget, spent, costs, run.options)
    epochs = steps * run.resolved.train_batch / run.corpus.split("train").num_rows(run.options.max_seq_len)
    return Length(
        steps,
        f"budget: {human_time(budget)} at {costs.step:.3g} s a step, evaluations and saves included: "
        f"{steps:,} steps ({epochs:.3g} epochs)",
        cost,
    )


def preflight_seconds(run: RunContext, costs: Costs, cost: cost_checks.Cost) -> float:
    """Return about what the checks will take at most: an engine, and steps on a few rows."""
    rows = checked_rows(run.resolved.micro_batch, run.options.max_seq_len) / run.resolved.micro_batch
    step = min(run.resolved.accumulation, MAX_ACCUMULATION) * cost.micro * rows + cost.step
    other = MAX_OVERFLOWS if run.resolved.precision == "fp16" else _OTHER_STEPS
    return min(PREFLIGHT_SECONDS, costs.build + costs.evaluation + (OVERFIT_STEPS + other) * step)


def _measure(run: RunContext) -> tuple[Costs, cost_checks.Cost]:
    """Measure with a trial engine that takes some steps at learning rate 0, evaluates, writes texts and is saved."""
    started = run.stop.elapsed
    with preserved_rng_state():
        trial = TrialEngine.of(run)
        try:
            return _measure_parts(run, trial, min(started, _START_SECONDS), run.stop.elapsed - started)
        except (cost_checks.OutOfMemory, RuntimeError, MemoryError) as error:
            if not (isinstance(error, cost_checks.OutOfMemory) or cost_checks.is_out_of_memory(error)):
                raise
            result = cost_checks.check_out_of_memory(str(error), run.resolved)
            raise UserError(f"{result.text}: {result.hint}") from None
        except DiskFull as error:
            raise UserError(f"{error}: free some space, or give another --output") from None
        finally:
            trial.close()


def _measure_parts(run: RunContext, trial: TrialEngine, start: float, build: float) -> tuple[Costs, cost_checks.Cost]:
    cost = cost_checks.measure_cost(trial, trial.rows(run.resolved.micro_batch), full_size=True, steps=1)
    taken = trial.timed_steps(MEASURED_SECONDS)
    medians = (
        statistics.median(one.micro_seconds for one in taken),
        statistics.median(one.step_seconds for one in taken),
    )
    micro, step = _slowest(medians)
    cost = replace(cost, micro=micro, step=step)
    evaluation, sample = _evaluation_seconds(run, trial)
    export, save = _writing_seconds(run, trial)
    parts = (evaluation + export, sample, save, build, start + build)
    evaluation, sample, save, build, setup = _slowest(parts)
    return Costs(micro * run.resolved.accumulation + step, evaluation, sample, save, build, setup), cost


def _slowest(seconds: Iterable[float]) -> list[float]:
    """Return the longest times over all ranks; collective."""
    return [max(values) for values in zip(*gather_from_ranks(tuple(seconds)), strict=True)]


def _evaluation_seconds(run: RunContext, trial: TrialEngine) -> tuple[float, float]:
    """Return the seconds of an evaluation with the texts that repetition is counted in, and of a sample."""
    options, val, micro_batch = run.options, run.corpus.split("val"), run.resolved.micro_batch
    rows, row_length = measured_rows(val, options.eval_tokens, options.max_seq_len)
    evaluation = 0.0
    if rows:
        few = rows[: _PASSES * run.world.size * micro_batch]
        loss = _second_time(
            trial,
            lambda: evaluate(
                trial.engine,
                val,
                few,
                seq_len=row_length,
                micro_batch=micro_batch,
                world=run.world,
                bytes_per_token=1.0,
            ),
        )
        length, seed = options.max_seq_len, options.seed
        repetition = RepetitionEvaluator(val, run.config, seq_len=length, seed=seed, world=run.world)
        evaluation = loss * len(rows) / len(few) + _second_time(trial, lambda: repetition.figures(trial.engine))
    tokenizer, seq_len = load_tokenizer(run.corpus.tokenizer_path), options.max_seq_len
    samples = SampleWriter(val, tokenizer, run.config, seq_len=seq_len, seed=options.seed)
    return evaluation, _second_time(trial, lambda: samples.write(trial.engine))


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

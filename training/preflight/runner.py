"""The order of the checks, the time that they may take, and what happens if the run does not fit into memory."""

from __future__ import annotations

import math

from corpus.shards import Corpus
from evaluation.rows import measured_rows
from model import ModelConfig
from training.context import RunContext
from training.evaluation.validation import intervals
from training.preflight import cost_checks, data_checks, model_checks, step_checks
from training.preflight.cost_checks import Cost, OutOfMemory, allocations, measure_cost
from training.preflight.report import Report, Result, warned
from training.preflight.trial_engine import Step, TrialEngine, trial_engine
from training.processes.process_group import broadcast_from_rank0

SECONDS = 60.0  # for all checks at the demo's size; the shares below are of it
_OVERLAP_SHARE, _FULL_BATCH_SHARE, _OVERFIT_SHARE = 0.08, 0.4, 0.4
_FULL_BATCH_PASSES = 5  # two steps of at most two micro-batches; a forward pass and an evaluation
_TOKENS = 1024  # of a rank's micro-batch in most checks


def checked_rows(micro_batch: int, seq_len: int) -> int:
    """Return how many rows a rank's micro-batch has in most checks."""
    return max(1, min(micro_batch, _TOKENS // seq_len))


def preflight(context: RunContext, cost: Cost | None = None) -> list[str]:
    """Check the run and return the ids of the checks that failed, the same on every rank; collective.

    `cost` is what the run's steps cost, where that is known already. Nothing is left behind but `preflight.json`.
    """
    report = Report(context.console, context.output / "preflight.json")
    context.console.say(
        "preflight: checking the run on a trial engine, a minute at most at the demo's size (--skip_preflight leaves "
        "this out)"
    )
    _check_data(report, context.corpus, context.options.max_seq_len, context.config.pad_token_id)
    try:
        with allocations(), trial_engine(context) as trial:
            _check_engine(report, trial, context, cost)
    except OutOfMemory as error:
        report.add("memory", cost_checks.check_out_of_memory(error, context.resolved), alone=not error.together)
        if not error.together:  # the others may be waiting for this rank, and the launcher ends them
            report.write()
            raise SystemExit(1 if context.options.preflight else 2) from None
    failed = broadcast_from_rank0(lambda: report.failed)
    report.write()
    return failed


def _check_data(report: Report, corpus: Corpus, seq_len: int, pad_id: int) -> None:
    """Check what needs no model; the other ranks wait for rank 0."""

    def results() -> list[tuple[str, Result | None]]:
        rows = data_checks.compare_rows(corpus, seq_len, pad_id)
        overlap = data_checks.measure_overlap(corpus, SECONDS * _OVERLAP_SHARE)
        return [
            ("targets", data_checks.check_row_targets(rows)),
            ("padding", data_checks.check_padding(rows)),
            ("overlap", data_checks.check_overlap(overlap)),
        ]

    for check_id, result in broadcast_from_rank0(results):
        if result is not None:
            report.add(check_id, result)


def _check_engine(report: Report, trial: TrialEngine, context: RunContext, cost: Cost | None) -> None:
    """Check what needs an engine."""
    options, resolved = context.options, context.resolved
    rows = trial.rows(checked_rows(resolved.micro_batch, options.max_seq_len))
    if resolved.precision == "fp16":
        trial.step(rows)  # its loss scale settles, with steps that are skipped
    untrained, without_gradient = _check_untrained(report, trial, rows, context.config)
    cost = cost or _measure_cost(trial, len(rows), untrained.micro_seconds)
    report.add("memory", cost_checks.check_memory(cost, context.device, resolved))
    report.add("speed", _check_speed(cost, context))
    trained_loss = _check_learning(report, trial, rows, untrained.loss, without_gradient)
    _check_losses(report, trial, rows, resolved.precision, trained_loss)


def _check_untrained(report: Report, trial: TrialEngine, rows: list[int], config: ModelConfig) -> tuple[Step, set[str]]:
    """Check the untrained network; return a step at learning rate 0, and the parameters that get no gradient."""
    gradients, norms, step = step_checks.measure_gradients(trial, rows)
    report.add("gradients", step_checks.check_gradients(gradients))
    report.add("gradients_cleared", step_checks.check_gradients_cleared(norms))
    report.add("loss_at_start", model_checks.check_loss_at_start(step.loss, config.vocab_size, trained=trial.trained))
    report.add("causality", model_checks.check_causality(model_checks.measure_future_leak(trial)))
    return step, {name for name, square in gradients.squares.items() if square == 0}


def _measure_cost(trial: TrialEngine, few: int, micro_seconds: float) -> Cost:
    """Measure with the run's own micro-batch, or with `few` rows, of `micro_seconds`, if there is no time for it."""
    whole = micro_seconds * trial.micro_batch / few * _FULL_BATCH_PASSES
    return measure_cost(trial, few if trial.any_rank(whole > SECONDS * _FULL_BATCH_SHARE) else trial.micro_batch)


def _check_speed(cost: Cost, context: RunContext) -> Result:
    options, resolved, steps = context.options, context.resolved, context.resolved.total_steps
    step = cost.whole_step(resolved.accumulation)
    evaluations = 1 + math.ceil(steps / intervals(options, steps).evaluation)
    return cost_checks.check_speed(
        resolved.train_batch * options.max_seq_len / step,
        step * steps + evaluations * evaluation_passes(context) * cost.evaluation,
        steps,
        None if options.max_steps else options.epochs,
        # a budget is made for as many sessions as it takes
        context.stop.seconds_left if options.budget is None else None,
        full_size=cost.full_size,
    )


def evaluation_passes(context: RunContext) -> int:
    """Return the micro-batches of one evaluation on one rank."""
    options = context.options
    rows, _ = measured_rows(context.corpus.split("val"), options.eval_tokens, options.max_seq_len)
    return math.ceil(len(rows) / context.world.size / context.resolved.micro_batch)


def _check_learning(
    report: Report, trial: TrialEngine, rows: list[int], start: float, without_gradient: set[str]
) -> float:
    """Check steps at the learning rates of the run; return the last loss, `start` if nothing can move."""
    losses, ratio = [start], 0.0
    if any(trial.peak_learning_rates):
        updates = step_checks.measure_updates(trial, rows)
        report.add("updates", step_checks.check_updates(updates, without_gradient))
        ratio = updates.ratio
        losses = step_checks.overfit(trial, rows, max(5.0, SECONDS - report.seconds) * _OVERFIT_SHARE)
        if trial.trained:
            report.add("overfit", step_checks.check_fine_tuning(start, losses, ratio))
        else:
            report.add("overfit", step_checks.check_overfit(start, losses, ratio, trial.config.vocab_size))
    rise = max(losses) - start
    report.add("warm_up", step_checks.check_warm_up(trial.learning_rates, trial.total_steps, ratio, rise))
    return losses[-1]


def _check_losses(report: Report, trial: TrialEngine, rows: list[int], precision: str, trained_loss: float) -> None:
    """Check the losses of a network that has memorized this batch, so that a wrong target cannot hide."""
    if not math.isfinite(trained_loss):
        report.add("evaluation_repeats", warned("not tried on a network that gives nan", "fix overfit first"))
        return
    losses = model_checks.measure_losses(trial, rows)
    # a loss that counts padding is not that of the text, as the padding line has said already
    if not {"targets", "padding"} & set(report.failed):
        report.add("targets", model_checks.check_loss(losses, precision))
    drops_tokens = trial.config.capacity_factor > 0
    result = model_checks.check_evaluation_repeats(losses, precision, drops_tokens=drops_tokens)
    report.add("evaluation_repeats", result)

"""The order of the checks, the time they may take, and what becomes of a failure."""

from __future__ import annotations

import math
import time
from typing import Any

import torch.distributed as dist

from evaluation.rows import evaluation_rows
from training.context import RunContext
from training.evaluation.intervals import intervals
from training.preflight import cost_checks, data_checks, model_checks, step_checks
from training.preflight.report import Report, warned
from training.preflight.trial_engine import Step, TrialEngine, untouched_randomness

SECONDS = 60.0
_TOKENS = 1024  # of a rank's micro-batch in most checks
_SHARE_FOR_FULL_BATCH, _SHARE_FOR_OVERFIT, _SHARE_FOR_OVERLAP = 0.4, 0.4, 0.08
_PASSES_OF_FULL_BATCH = 5  # two steps of at most two micro-batches; a rehearsal and an evaluation


def checked_rows(micro_batch: int, seq_len: int) -> int:
    """Rows of a rank's micro-batch in most checks."""
    return max(1, min(micro_batch, _TOKENS // seq_len))


def preflight(run: RunContext, measured: cost_checks.Cost | None = None) -> list[str]:
    """Check the run; returns the ids of what failed, the same on every rank. Collective.

    `measured` is what its steps cost, where that is known already. Nothing of it is left behind but `preflight.json`,
    on rank 0: the engine that is trained here is a throw-away copy.
    """
    started = time.monotonic()
    report = Report(run.console)
    run.console.say(
        "preflight: training a throw-away copy of the run to check it, a minute at most at the demo's size "
        "(--skip_preflight leaves this out)"
    )
    with untouched_randomness():
        _data(run, report)
        _engine(run, report, started, measured)
    failed = _from_rank_0(report.failed)
    seconds = time.monotonic() - started
    if run.world.rank == 0:
        report.write(run.output / "preflight.json", seconds)
    levels = [check.level for check in report.checks]
    run.console.say(
        f"preflight: {levels.count('pass')} passed, {levels.count('warn')} warned, {levels.count('fail')} "
        f"failed, in {seconds:.1f} s"
    )
    return failed


def _from_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _data(run: RunContext, report: Report) -> None:
    """What needs no model; the other ranks wait."""
    checks = []
    if run.world.rank == 0:
        rows = data_checks.look_at_rows(run.corpus, run.options.max_seq_len, run.config.pad_token_id)
        overlap = data_checks.find_overlap(run.corpus, SECONDS * _SHARE_FOR_OVERLAP)
        checks = [
            data_checks.judge_row_targets(rows),
            data_checks.judge_padding(rows),
            data_checks.judge_overlap(overlap),
        ]
    for check in _from_rank_0(checks):
        if check is not None:
            report.add(check)


def _engine(run: RunContext, report: Report, started: float, measured: cost_checks.Cost | None) -> None:
    """What needs one."""
    bench = TrialEngine(
        run.config,
        run.resolved,
        seed=run.options.seed,
        world=run.world,
        stream=run.corpus.split("train"),
        seq_len=run.options.max_seq_len,
    )
    try:
        _EngineChecks(run, report, bench, started, measured).all()
    except cost_checks.OutOfMemory as error:
        report.add(cost_checks.judge_out_of_memory(str(error), run.resolved))
    except (RuntimeError, MemoryError) as error:
        if not cost_checks.is_out_of_memory(error):
            raise
        _alone(run, report, error)
    finally:
        bench.close()


def _alone(run: RunContext, report: Report, error: BaseException) -> None:
    """This rank ran out of memory, and the others may be waiting for it: tell, and go; the launcher ends them."""
    check = cost_checks.judge_out_of_memory(str(error).splitlines()[0], run.resolved)
    run.console.fail(check.line())
    report.checks.append(check)
    if run.world.rank == 0:
        report.write(run.output / "preflight.json", 0.0)
    raise SystemExit(1 if run.options.preflight else 2)


class _EngineChecks:
    """The checks of one throw-away engine; every method is collective."""

    def __init__(
        self, run: RunContext, report: Report, bench: TrialEngine, started: float, measured: cost_checks.Cost | None
    ) -> None:
        self.run, self.report, self.bench, self.started, self.measured = run, report, bench, started, measured
        self.rows = bench.rows(checked_rows(run.resolved.micro_batch, run.options.max_seq_len))
        self.still = [0.0] * len(bench.peak)

    def all(self) -> None:
        """In the order in which the engine can serve them: first the untrained network, then the trained one."""
        bench, vocab = self.bench, self.run.config.vocab_size
        bench.step(self.rows, self.still)  # an fp16 loss scale finds its level, and what is slow once is over
        step = self._gradients()
        start = step.loss
        self.report.add(model_checks.judge_start(start, vocab))
        self.report.add(model_checks.judge_leak(model_checks.future_leak(bench)))
        self._cost(step.micro_seconds)
        if any(bench.peak):
            end = self._learning(start)
        else:  # nothing can move, which needs no other line
            self.report.add(step_checks.judge_no_rate(self.run.resolved.total_steps))
            end = start
        if math.isfinite(end):
            self._losses()
        else:
            self.report.add(warned("evaluation_repeats", "not tried on a network that gives nan", "mend overfit first"))

    def _learning(self, start: float) -> float:
        """Steps at the rates of the run; returns the last loss."""
        bench = self.bench
        update = step_checks.updates(bench, self.rows)
        self.report.add(step_checks.judge_updates(update, self.without_gradient))
        losses = step_checks.overfit(bench, self.rows, self._seconds_left() * _SHARE_FOR_OVERFIT)
        self.report.add(step_checks.judge_overfit(start, losses, update.ratio, self.run.config.vocab_size))
        rise = max(losses) - start
        self.report.add(step_checks.judge_warmup(bench.rates, self.run.resolved.total_steps, update.ratio, rise))
        return losses[-1]

    def _seconds_left(self) -> float:
        """Of the time for all checks; rank 0's clock, so that all ranks decide alike."""
        return _from_rank_0(max(5.0, SECONDS - (time.monotonic() - self.started)))

    def _gradients(self) -> Step:
        """Returns the last step, taken at rate 0."""
        watch = step_checks.GradientWatch(self.bench)
        found: list[step_checks.GradientFigures] = []
        norms, step = step_checks.gradient_norms(self.bench, self.rows, 2, lambda: found.append(watch.finish()))
        self.without_gradient = {name for name, square in found[0].squares.items() if square == 0}
        self.report.add(step_checks.judge_gradients(found[0]))
        self.report.add(step_checks.judge_cleared(norms))
        return step

    def _cost(self, micro_seconds: float) -> None:
        """Memory and speed with the largest batch, or what there is time for."""
        run, bench = self.run, self.bench
        if self.measured is not None:
            self._judge_cost(self.measured, self.measured)
            return
        times = run.resolved.micro_batch / len(self.rows)
        too_slow = bench.agree(micro_seconds * times * _PASSES_OF_FULL_BATCH > SECONDS * _SHARE_FOR_FULL_BATCH)
        full = times == 1 or not too_slow
        larger = full and times > 1
        rows = bench.rows(run.resolved.micro_batch) if larger else self.rows
        cost = cost_checks.measure(bench, rows, full=full, steps=2 if larger else 1)
        self._judge_cost(cost, cost.for_rows(1 if full else times))

    def _judge_cost(self, cost: cost_checks.Cost, scaled: cost_checks.Cost) -> None:
        """As measured, and as of the run's own micro-batch. A budget is made for as many sessions as it takes."""
        run = self.run
        left = run.stop.seconds_left if run.options.budget is None else None
        self.report.add(cost_checks.judge_memory(cost, run.device, run.resolved))
        self.report.add(cost_checks.judge_speed(scaled, run.resolved.accumulation, self._pace(), left))

    def _pace(self) -> cost_checks.Pace:
        options, resolved, seq_len = self.run.options, self.run.resolved, self.run.options.max_seq_len
        val = self.run.corpus.split("val")
        rows = evaluation_rows(val.num_rows(seq_len), options.eval_tokens, seq_len) if len(val) > seq_len else []
        total = resolved.total_steps
        return cost_checks.Pace(
            total_steps=total,
            tokens_per_step=resolved.train_batch * seq_len,
            epochs=None if options.max_steps else options.epochs,
            evaluations=1 + math.ceil(total / intervals(options, total).evaluation) if rows else 0,
            micro_batches_an_evaluation=math.ceil(len(rows) / self.run.world.size / resolved.micro_batch),
        )

    def _losses(self) -> None:
        """Of a network that knows this batch by now, so that a wrong target cannot hide."""
        found = model_checks.loss_figures(self.bench, self.run.corpus, self.rows)
        precision = self.run.resolved.precision
        # a loss that counts padding is not that of the text, which the padding line has told already
        if not {"targets", "padding"} & set(self.report.failed):
            self.report.add(model_checks.judge_loss(found, precision))
        self.report.add(
            model_checks.judge_evaluation(found, precision, drops_tokens=self.run.config.capacity_factor > 0)
        )

"""The figures of a run: gathered on every rank, then written, shown and watched for alarms by rank 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.files import read_json_lines
from evaluation.language_figures import LanguageFigures
from training.checkpointing.checkpoint import Local
from training.checkpointing.run_state import RunState
from training.context import RunContext
from training.engine.internals import loss_scale
from training.engine.protocol import Engine
from training.evaluation.validation import Evaluation
from training.monitoring.accumulator import MetricAccumulator
from training.monitoring.alarms import Alarms
from training.monitoring.metrics import Metrics
from training.monitoring.terminal import Progress
from training.monitoring.weight_updates import WeightSample
from training.planning.flops import training_flops_per_token
from training.processes.process_group import sum_over_ranks


class Recorder:
    """Gathers, writes and shows figures. Every rank has one; `log_step` is collective."""

    def __init__(self, engine: Engine, state: RunState, context: RunContext) -> None:
        self.engine, self.context, self.console = engine, context, context.console
        self.accumulator, self.weights = MetricAccumulator(engine), WeightSample(engine)
        self.flops_per_token = training_flops_per_token(context.config, context.options.max_seq_len)
        self.metrics: Metrics | None = None
        baselines = context.corpus.manifest.ngram_baselines
        if self.console.rank == 0:
            self.metrics = Metrics(
                context.output,
                engine.monitor,
                state,
                samples_per_step=context.resolved.train_batch,
                baselines=baselines.losses() if baselines else {},
                total_steps=context.resolved.total_steps,
                say=self.console.say,
            )
        self.alarms = self._alarms(state)
        self.progress = Progress(self.console, state.step, context.resolved.total_steps)

    def _alarms(self, state: RunState) -> Alarms:
        """Return alarms that know the history of the run; rank 0 has it, and is the only one to report them."""
        alarms = Alarms(
            unigram=self.context.unigram,
            warmup=self.context.resolved.warmup_steps,
            experts_per_token=self.context.config.num_experts_per_tok,
            raised=state.alarms,
            report=self._report_alarm,
        )
        if self.metrics and state.step:
            alarms.remember(read_json_lines(self.context.output / "metrics.jsonl"))
        return alarms

    def _report_alarm(self, step: int, name: str, message: str) -> None:
        if self.metrics:
            self.console.say(f"  ALARM at step {step:,} ({name}): {message}")
            self.metrics.alarm(step, name, message)

    # --- what happened ------------------------------------------------------------------------------------------------

    def step_done(self, state: RunState, seconds: float, loss: Callable[[], float]) -> None:
        """Count an optimizer step; `loss` is only called when the display is due."""
        scale = loss_scale(self.engine)
        self.accumulator.add_step(seconds)
        self.progress.advance(loss, self.context.tokens_per_step, scale)
        self.alarms.stepped(state.step, skipped=not self.engine.was_step_applied(), loss_scale=scale)

    def log_step(self, state: RunState, lr: float) -> None:
        """Write and show the means since the last call; `lr` is the latest step's. Collective."""
        context = self.context
        loss, balance = self.accumulator.mean_losses()
        speed = self.accumulator.steps_per_second() * context.tokens_per_step
        routing = self.accumulator.routing()
        unchanged, ratio = self._weight_update()
        self.accumulator.reset()
        self.progress.report(loss, speed, state.step * context.tokens_per_step)
        norm = self.engine.get_global_grad_norm()
        peak = (context.device.peak_flops or {}).get(context.resolved.precision)
        figures = {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / context.bytes_per_token("train"),
            "balance_loss": balance if routing else None,
            "lr": lr,
            "grad_norm": None if norm is None else float(norm),
            "loss_scale": loss_scale(self.engine),
            "skipped_steps": int(self.engine.skipped_steps),
            "update_ratio": ratio,
            "unchanged": unchanged,
            "tokens_per_second": speed,
            "model_flops_utilisation": speed * self.flops_per_token / peak / self.engine.world_size if peak else None,
        }
        self._write("train", state, figures | routing)

    def _write(self, split: str, state: RunState, figures: dict[str, Any]) -> None:
        """Write a line of metrics, and look at it; rank 0."""
        if self.metrics:
            so_far = {"tokens": state.step * self.context.tokens_per_step, "seconds": round(state.seconds, 2)}
            self.alarms.observe(self.metrics.write(split, state.step, so_far | figures))

    def _weight_update(self) -> tuple[float, float]:
        """Return (share of the weights unchanged, size of their change over their own) since the last call."""
        figures = torch.tensor(self.weights.compare(), dtype=torch.float64, device=self.engine.device)
        unchanged, ratio = (sum_over_ranks(figures) / self.engine.world_size).tolist()
        return unchanged, ratio

    def evaluated(
        self, state: RunState, result: Evaluation, repetition: dict[str, Any], prompts: int, problem: str | None
    ) -> None:
        """Write an evaluation's line of metrics; `problem` is why there are no figures of repetition on its prompts."""
        if problem:
            self.console.say(f"  no repetition figures: {problem}")
        elif repetition:
            self.progress.repetition(repetition, prompts)
        figures = {"loss": result.loss, "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte}
        self._write("val", state, figures | repetition)

    def measured(self, state: RunState, figures: LanguageFigures | None, problem: str | None) -> None:
        """Write the figures of the end of a run into figures.json and on TensorBoard."""
        if problem:
            self.console.say(f"  no minimal pairs: {problem}")
        if self.metrics and figures:
            self.metrics.language(state.step, figures)
            if found := figures.minimal_pairs.get("all"):
                answers = self.context.corpus.manifest.splits["val"].answers
                self.progress.minimal_pairs(found, conversations=answers is not None)

    def sampled(self, state: RunState, rows: list[dict[str, str]]) -> None:
        """Write the continuations of the fixed prompts, and show the first."""
        if self.metrics and rows:
            self.metrics.sample(state.step, rows)
            first = f"{rows[0]['prompt']}|{rows[0]['text']}".replace("\n", " ")
            self.console.say(f"  sample: {first}")  # the others are in samples.jsonl and TensorBoard

    # --- leaving and coming back --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Have the disk hold what is written: nothing before a checkpoint may be missing after a return to it."""
        if self.metrics:
            self.metrics.sync()

    def local(self) -> dict[str, Tensor]:
        """Return what this rank has counted since the last line of metrics, for its share of a checkpoint."""
        return self.accumulator.state() | self.weights.state()

    def restore(self, saved: Local) -> None:
        """Take over what was counted when a checkpoint was written."""
        self.accumulator.restore(saved.states)
        self.weights.restore(saved.states[0] if saved.same_ranks else {})

    def rewind(self, state: RunState) -> None:
        """Drop what is later than `state`, which the run has gone back to."""
        if self.metrics:
            self.metrics.rewind(state)
        self.alarms = self._alarms(state)
        self.progress.rewind(state.step)

    def close(self) -> None:
        """Let go of the terminal and write what still waits."""
        self.progress.close()
        self.sync()

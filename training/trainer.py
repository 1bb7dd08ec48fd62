"""The training loop: step, log, evaluate, sample, save, stop; and back, when the numbers go wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corpus.tokenizer import load_tokenizer
from evaluation.rows import evaluation_rows
from model import GenerationError
from training import rollback, sampler
from training.checkpointing import checkpoint
from training.checkpointing.checkpoint import NotFinite
from training.checkpointing.disk import DiskFull, checkpoint_bytes
from training.checkpointing.export import export_model, inference_model
from training.checkpointing.run_state import RunState
from training.context import RunContext
from training.engine.internals import loss_scale
from training.engine.protocol import Engine
from training.evaluation import samples
from training.evaluation.intervals import intervals
from training.evaluation.repetition import RepetitionEvaluator
from training.evaluation.validation import Evaluation, evaluate
from training.monitoring.accumulator import MetricAccumulator
from training.monitoring.alarms import Alarm, Alarms, read_rows
from training.monitoring.metrics import Metrics
from training.monitoring.progress import Progress
from training.monitoring.routing import read as read_routing
from training.monitoring.weight_updates import WeightSample
from training.planning.flops import training_flops_per_token
from training.processes.process_group import any_rank, broadcast_from_rank0, sum_over_ranks
from training.rollback import Diverged, NonFiniteMonitor
from training.sampler import SampleStream

_SAVE_SECONDS = 300.0  # without a sign of progress it is stuck; a file system may have a bad day
_SAVE_MARGIN, _ENDING_SECONDS = 1.5, 3.0  # of the longest save so far; to sum up and to leave
_DISK_SPEED = 100e6  # bytes a second, written, flushed and read back; assumed of a slow disk
_SAMPLED = "sampled:"  # what marks the weight sample among a rank's own numbers in a checkpoint


class Trainer:
    """One run from its start, or from a checkpoint, to its end; every rank has one and they move together."""

    def __init__(self, context: RunContext, engine: Engine, state: RunState) -> None:
        self.context, self.engine, self.state = context, engine, state
        self.options, self.world, self.console = context.options, context.world, context.console
        self.tokenizer = load_tokenizer(context.corpus.tokenizer_path)
        self.train, self.val = context.corpus.split("train"), context.corpus.split("val")
        seq_len = self.options.max_seq_len
        val_rows = self.val.num_rows(seq_len) if len(self.val) else 0
        self.val_rows = evaluation_rows(val_rows, self.options.eval_tokens, seq_len)
        self.order = SampleStream(self.train.num_rows(self.options.max_seq_len), self.options.seed)
        self.total_steps = context.resolved.total_steps
        self.every = intervals(self.options, self.total_steps)
        self.accumulator, self.weights, self.nonfinite = (
            MetricAccumulator(engine),
            WeightSample(engine),
            NonFiniteMonitor(engine),
        )
        self.weights.snapshot()
        self.flops_per_token = training_flops_per_token(context.config, self.options.max_seq_len)
        self.prompts = samples.fixed_prompts(self.val, self.tokenizer, context.config) if len(self.val) else []
        self.probing = RepetitionEvaluator(
            self.val, context.config, seq_len=seq_len, seed=self.options.seed, world=self.world
        )
        self.metrics = None
        if self.world.rank == 0:
            self.metrics = Metrics(
                context.output,
                engine.monitor,
                state,
                say=self.console.say,
                samples_per_step=context.resolved.train_batch,
            )
        self.alarms = _alarms(context, state)
        self.progress = Progress(self.console, state.step, self.total_steps)
        self.last_evaluation: Evaluation | None = None
        self.rate = 0.0  # that the latest step was taken with
        self.saved_step: int | None = None
        self.last_good: Path | None = None  # the checkpoint that was written or loaded last
        self.save_estimate = checkpoint_bytes(context.config, context.resolved) / _DISK_SPEED  # until one was measured
        self.doing, self.warm = "training", False  # what this rank does; whether it has made a step in this session
        self.slowest = 0.0  # seconds of a part that does not end early when it is asked to: a step, a sample
        self.earlier_seconds = state.wall_seconds  # of other sessions
        self.began = state.step, time.monotonic()  # where and when this session's first step was

    def resume(self, found: Path) -> None:
        """Put the engine, and what this rank counted, where checkpoint `found` left them; collective."""
        local = checkpoint.load(self.engine, found)
        self.accumulator.restore(
            [{name: values for name, values in one.items() if not name.startswith(_SAMPLED)} for one in local.states]
        )
        if local.same_ranks:
            self.weights.restore(
                {
                    name.removeprefix(_SAMPLED): values
                    for name, values in local.states[0].items()
                    if name.startswith(_SAMPLED)
                }
            )
        else:
            self.weights.snapshot()
        self.saved_step, self.last_good = self.state.step, found

    def fit(self) -> str:
        """Train to the end or until asked to stop; returns the reason, for people and for summary.json.

        Raises Diverged, with the last good checkpoint in place, when the numbers went wrong.
        """
        self.began = self.state.step, time.monotonic()
        if self.state.step == 0:
            self._before_first_step()
        else:
            self._look()  # what the interruption kept from being done
        self.state.finished = False
        reason = self._reason_to_stop()
        while not self._ended(reason):
            self._step_or_go_back()
            reason = self._reason_to_stop()
        if not self.kept:
            return f"NOT SAVED at the end ({reason or 'finished'})"
        return reason or "finished"

    @property
    def kept(self) -> bool:
        """Whether all steps so far are in a checkpoint."""
        return self.state.step in (0, self.saved_step)

    def _ended(self, reason: str | None) -> bool:
        """Whether the run has come to an end, and all is kept. Not if what was to be kept is not finite."""
        if self.state.step < self.total_steps and not reason:
            return False
        self.state.finished = not reason
        try:
            self._finish()
        except NotFinite:
            self._go_back_from_bad_weights()
            return False
        return True

    def _step_or_go_back(self) -> None:
        """A step and what comes after it, unless the numbers go wrong."""
        try:
            if trouble := self._step():
                self._diverged(trouble)
                return
            self._after_step()
        except NotFinite:
            self._go_back_from_bad_weights()

    def _go_back_from_bad_weights(self) -> None:
        self.state.step -= 1
        self._diverged("the weights are not finite")

    def _before_first_step(self) -> None:
        """Where training starts from, to see later how far it has come."""
        self._look()
        if self.options.on_divergence == "rollback":
            self._save()

    def _reason_to_stop(self) -> str | None:
        """Why not to go on; collective, and the same on every rank. None if all has been done that was to be done."""
        if self.state.step == self.total_steps and not self._pending():
            return None
        if why := self.state.early_stopping(self.options.patience):
            return why
        if self._asked_to_stop():
            return (
                self.context.stop.reason or self.context.watchdog.stop_reason() or "another process was asked to stop"
            )
        return None

    def _asked_to_stop(self) -> bool:
        """Collective. The time limit leaves room for what is under way and for the save after it."""
        self.context.watchdog.tick(self.doing)
        save = self.state.save_seconds or self.save_estimate
        self.context.stop.reserve(_SAVE_MARGIN * save + self.slowest + _ENDING_SECONDS)
        return any_rank(self.context.stop.wanted, self.engine.device)

    def _now(self, doing: str, at_least: float = 0.0) -> None:
        """Tell the watchdog, which gives it `at_least` so many seconds, and whoever looks at the bar."""
        self.context.watchdog.tick(doing, at_least)
        self.doing = doing
        if doing != "training":
            self.progress.doing(doing)

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> str | None:
        """One optimizer step, `accumulation` micro-batches through DeepSpeed; returns what went wrong."""
        started = time.perf_counter()
        # Every step has its own random numbers, so that a continued run draws what an uninterrupted one would
        torch.manual_seed(hash((self.options.seed, self.state.step, self.world.rank)))
        self.rate, scale = float(self.engine.optimizer.param_groups[0]["lr"]), loss_scale(self.engine)
        micro_batches = self._rows(self.world.rank)
        bad = torch.zeros((), device=self.engine.device)
        for micro_step, rows in enumerate(micro_batches, 1):
            self._now("training", 0.0 if self.warm else self.context.watchdog.timing.first)
            losses = self.engine(*sampler.tensors(self.train, rows, self.options.max_seq_len, self.engine.device))
            self.engine.backward(losses.total)
            self.accumulator.add_micro_batch(losses.lm, losses.balance)
            bad += ~losses.lm.detach().isfinite()
            if micro_step == len(micro_batches) and (trouble := self.nonfinite.loss(not any_rank(bad, bad.device))):
                return trouble  # before a wrong gradient reaches the weights
            self.engine.step()
        if trouble := self.nonfinite.step(scale):
            return trouble
        seconds = time.perf_counter() - started
        self.state.step += 1
        self.state.seconds += seconds
        self.accumulator.add_step(seconds)
        self.slowest, self.warm = max(self.slowest, seconds), True
        self.progress.advance(lambda: losses.lm.item(), self.context.tokens_per_step, loss_scale(self.engine))
        self._say(
            self.alarms.stepped(
                self.state.step, skipped=not self.engine.was_step_applied(), loss_scale=loss_scale(self.engine)
            )
        )
        return None

    def _rows(self, rank: int) -> list[list[int]]:
        """What `rank` trains on in the next step, a list for each micro-batch."""
        resolved, batch = self.context.resolved, self.state.batch_number(self.state.step)
        return [
            self.order.micro_batch(
                batch,
                micro_step,
                rank,
                micro_batch=resolved.micro_batch,
                accumulation=resolved.accumulation,
                world_size=self.world.size,
            )
            for micro_step in range(resolved.accumulation)
        ]

    def _after_step(self) -> None:
        step, options, last = self.state.step, self.options, self.state.step == self.total_steps
        if step == 1 or step % options.log_interval == 0 or last:
            self._log()
        self._look()
        if step % options.save_interval == 0 and not last:
            self._save()

    def _look(self) -> None:
        """Evaluate and write samples, as far as they are due and nobody waits for the run to stop; collective."""
        for name, work in self._pending().items():
            started = time.perf_counter()
            if self._asked_to_stop() or not work():
                return
            self.state.done[name] = self.state.step
            self.saved_step = None  # of a run that continues: it would have to be done again
            if name == "sample":
                self.slowest = max(self.slowest, time.perf_counter() - started)

    def _pending(self) -> dict[str, Callable[[], bool]]:
        """What is due at this step and has not been done yet."""
        step, last = self.state.step, self.state.step == self.total_steps
        due: dict[str, Callable[[], bool]] = {}
        if self.val_rows and (step % self.every.evaluation == 0 or last):
            due["evaluation"] = self._evaluate
        if self.prompts and (step % self.every.sample == 0 or last):
            due["sample"] = self._sample
        return {name: work for name, work in due.items() if self.state.done.get(name) != step}

    # --- figures ------------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        """Means over the window; collective."""
        context = self.context
        loss, balance = self.accumulator.mean_losses()
        speed = self.accumulator.steps_per_second() * context.tokens_per_step
        routed = read_routing(self.engine.module.expert_layers())
        unchanged, ratio = self._update()
        if self.metrics:
            peak = (context.device.peak_flops or {}).get(context.resolved.precision)
            row = self.metrics.write(
                "train",
                self.state.step,
                {
                    "tokens": self.state.step * context.tokens_per_step,
                    "loss": loss,
                    "bits_per_byte": loss / math.log(2) / context.bytes_per_token("train"),
                    "balance_loss": balance if context.config.use_moe else None,
                    "lr": self.rate,
                    "grad_norm": _number(self.engine.get_global_grad_norm()),
                    "loss_scale": loss_scale(self.engine),
                    "skipped_steps": int(self.engine.skipped_steps),
                    "update_ratio": ratio,
                    "unchanged": unchanged,
                    "tokens_per_second": speed,
                    "model_flops_utilisation": speed * self.flops_per_token / (peak * self.world.size)
                    if peak
                    else None,
                }
                | (routed.figures() if routed else {}),
            )
            if routed:
                self.metrics.expert_load(self.state.step, routed.load)
        self.progress.report(loss, speed, self.state.step * context.tokens_per_step)
        if self.metrics:
            self._say(self.alarms.observe(row))
        self.accumulator = MetricAccumulator(self.engine)

    def _update(self) -> tuple[float, float]:
        """(share of the weights unchanged, size of their change over their own) since the last call; collective."""
        change = self.weights.compare()
        self.weights.snapshot()
        sums = sum_over_ranks(
            torch.tensor([change.unchanged, change.ratio], dtype=torch.float64, device=self.engine.device)
        )
        unchanged, ratio = (sums / self.world.size).tolist()
        return unchanged, ratio

    def _evaluate(self) -> bool:
        """Validation loss and repetition; the best model so far is kept as that of the run. Collective.

        False if it was given up for a request to stop.
        """
        self._now("evaluating")
        result = evaluate(
            self.engine,
            self.val,
            self.val_rows,
            seq_len=self.options.max_seq_len,
            micro_batch=self.context.resolved.micro_batch,
            world=self.world,
            bytes_per_token=self.context.bytes_per_token("val"),
            give_up=self._asked_to_stop,
        )
        if result is None:
            return False
        self.last_evaluation = result
        before = self.state.best_loss, self.state.best_step
        best = self.state.update_best(result.loss)
        started = time.perf_counter()
        self.progress.evaluated(result.loss, result.bits_per_byte, self.context.corpus.manifest.ngram_baselines, best)
        figures = self._repetition()
        if self.metrics:
            row = self.metrics.write(
                "val",
                self.state.step,
                {
                    "tokens": self.state.step * self.context.tokens_per_step,
                    "loss": result.loss,
                    "perplexity": result.perplexity,
                    "bits_per_byte": result.bits_per_byte,
                }
                | figures,
            )
            self._say(self.alarms.observe(row))
        if best and not self._export():
            # not kept, so not the one that later ones have to beat
            self.state.best_loss, self.state.best_step = before
        self.slowest = max(self.slowest, time.perf_counter() - started)
        return True

    def _repetition(self) -> dict[str, Any]:
        """What the model makes of held-out prompts, in figures; collective."""
        self._now("measuring repetition")
        figures, problem = self.probing.figures(self.engine)
        if problem:
            self.console.say(f"  no figures of repetition: {problem}")
        elif figures:
            self.progress.repetition(figures, len(self.probing.held_out.prompts))
        return figures

    def _say(self, alarms: list[Alarm]) -> None:
        if self.metrics:
            for alarm in alarms:
                self.progress.alarm(alarm.step, alarm.id, alarm.message)
                self.metrics.alarm(alarm.step, alarm.id, alarm.message)

    def _sample(self) -> bool:
        """Write continuations of the fixed prompts; collective because experts may be on other ranks."""
        self._now("writing samples")
        model = inference_model(self.engine, self.context.config)
        if self.metrics:
            try:
                texts = samples.continue_prompts(model, self.tokenizer, self.prompts, self.options.seed)
            except GenerationError as error:  # not finite: no reason to lose the run's last checkpoint
                self.console.say(f"  no sample: {error}")
                return True
            rows = samples.rows(self.prompts, texts)
            self.metrics.sample(self.state.step, rows)
            first = f"{rows[0]['prompt']}|{rows[0]['text']}".replace("\n", " ")
            self.console.say(f"  sample: {first}")  # the others are in samples.jsonl and TensorBoard
        return True

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _export(self) -> bool:
        """Write model/; collective. False, and what was there is still there, if the disk is full."""
        self._now("exporting", _SAVE_SECONDS)
        try:
            export_model(
                self.engine, self.context.config, self.context.corpus.tokenizer_path, self.context.output / "model"
            )
        except DiskFull as error:
            self.console.say(f"  NOT KEPT as the best model: {error}; what is in {self.context.output}/model is whole")
            return False
        return True

    def _save(self, *, last: bool = False) -> bool:
        """Write a checkpoint; collective. False, and those before it are still there, if it could not be written.

        `last`: the run ends, and this is not tried again. NotFinite if the weights are not fit to be kept.
        """
        self._now("saving", _SAVE_SECONDS)
        self.state.wall_seconds = self.earlier_seconds + self.context.stop.elapsed
        if (steps := self.state.step - self.began[0]) > 0:
            self.state.pace = (time.monotonic() - self.began[1]) / steps
        if self.metrics:
            self.metrics.sync()  # nothing that the checkpoint has behind it may be missing after a return to it
        try:
            saved = checkpoint.save(
                self.engine, self.context.checkpoints, self.state, self.options.keep_last, self._local(), self.last_good
            )
        except DiskFull as error:
            then = (
                "make room and start again: the same command goes on from the last of them"
                if last
                else f"saving is tried again after {self.options.save_interval:,} steps"
            )
            self.console.say(f"  NOT SAVED: {error}; the checkpoints before it are whole; {then}")
            return False
        self.saved_step, self.last_good = self.state.step, saved.path
        self.state.save_seconds = max(0.5 * self.state.save_seconds, saved.seconds)
        self.console.say(f"  saved {saved.path} ({saved.bytes / 1e6:,.1f} MB in {saved.seconds:.1f} s)")
        return True

    def _local(self) -> dict[str, Tensor]:
        """What this rank has counted since the last line of metrics."""
        sampled = {_SAMPLED + name: values for name, values in self.weights.state().items()}
        return self.accumulator.state() | sampled

    def _finish(self) -> None:
        """A last checkpoint, and a model even where there is no validation split to choose one by."""
        if not self.state.step:
            return
        if not self.kept and not self._save(last=True):
            self.state.finished = False
        # a run that was begun from a checkpoint of another may never have had a best model of its own
        model = self.context.output / "model" / "model.safetensors"
        if self.state.best_loss is None or broadcast_from_rank0(self.world, lambda: not model.is_file()):
            self._export()

    def close(self) -> None:
        """Let go of the terminal and the files."""
        self.progress.close()
        if self.metrics:
            self.metrics.close()

    # --- when the numbers go wrong ------------------------------------------------------------------------------------

    def _diverged(self, what: str) -> None:
        """Report, then go back a checkpoint and leave the batch out, or end the run; collective."""
        self._now("looking for what went wrong")
        batch = self.state.batch_number(self.state.step)
        where = rollback.locate(self.engine, self.train, self._rows(self.world.rank), self.options.max_seq_len)
        rows = [row for rank in range(self.world.size) for part in self._rows(rank) for row in part]
        report = rollback.Report(self.state.step + 1, batch, rows, what, where)
        if self.metrics:
            report.write(self.context.output)
        self.console.say(f"  DIVERGED: {report}")
        if self.options.on_divergence == "stop":
            raise Diverged(
                f"{report}; {self._last_good()}. A lower rate, or --on_divergence rollback to leave such "
                "batches out, is what to try"
            )
        if self.state.rollbacks >= self.options.max_rollbacks:
            raise Diverged(
                f"{report}; gone back {self.state.rollbacks} times already (--max_rollbacks); {self._last_good()}"
            )
        self._roll_back(batch)

    def _roll_back(self, batch: int) -> None:
        """To the last good checkpoint. The batch is left out; if that was not enough, all since the checkpoint are."""
        found, before = self.last_good, self.state
        if found is None:
            raise Diverged("there is no checkpoint to go back to")
        if wrong := broadcast_from_rank0(self.world, lambda: checkpoint.damage(found)):
            raise Diverged(f"the checkpoint to go back to is damaged: {wrong}")
        if not self.nonfinite.stepped:
            self.engine.step()  # DeepSpeed lets go of the gradients; the weights are replaced in a moment
        then = checkpoint.read_state(found)
        first = then.batch_number(then.step)
        again = any(first <= number <= batch for number in before.skipped_batches)
        then.skipped_batches = sorted({*before.skipped_batches, *(range(first, batch + 1) if again else (batch,))})
        then.rollbacks = before.rollbacks + 1
        for name in ("wall_seconds", "total_steps", "identity", "ds_config"):
            setattr(then, name, getattr(before, name))
        self.state = then
        self.nonfinite.bad_losses = 0
        self.resume(found)
        if self.metrics:
            self.metrics.rewind(self.state)
        self.began = self.state.step, time.monotonic()
        self.alarms = _alarms(self.context, self.state)
        self.progress.rewind(self.state.step)
        batches = f"batches {first:,} to {batch:,}" if again else f"batch {batch:,}"
        self.console.say(
            f"  back at {found} (rollback {self.state.rollbacks}, at most {self.options.max_rollbacks}); "
            f"left out: {batches}"
        )

    def _last_good(self) -> str:
        return f"the last good checkpoint is {self.last_good}" if self.last_good else "there is no checkpoint before it"


def _alarms(context: RunContext, state: RunState) -> Alarms:
    """With the history of the run, which rank 0 keeps and is the only one to raise them from."""
    schedule = context.resolved.config.get("scheduler", {}).get("params", {})
    alarms = Alarms(
        unigram=context.unigram,
        warmup=int(schedule.get("warmup_num_steps", 0)),
        choices=context.config.num_experts_per_tok,
        raised=state.alarms,
    )
    if context.world.rank == 0 and state.step:
        alarms.remember(read_rows(context.output / "metrics.jsonl"))
    return alarms


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

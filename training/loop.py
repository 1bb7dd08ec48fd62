"""The training loop: step, log, evaluate, sample, save, stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from corpus.rows import evaluation_rows
from corpus.shards import Corpus
from model import GenerationError, ModelConfig
from training import checkpoint, routing, samples
from training.alarms import Alarm, Alarms, read_rows
from training.arguments import Options
from training.console import Console
from training.data import SampleStream
from training.device import Device
from training.distributed import World, any_rank, sum_over_ranks
from training.ds_config import Resolved
from training.engine import learning_rate, loss_scale
from training.evaluation import Evaluation, evaluate
from training.export import export_model, inference_model
from training.flops import training_flops_per_token
from training.metrics import Metrics
from training.probing import Probing
from training.progress import Progress
from training.step import forward_backward
from training.stopping import StopRequest
from training.updates import WeightSample


@dataclass(frozen=True)
class Setup:
    """All that a run was started with."""

    options: Options
    output: Path
    config: ModelConfig
    resolved: Resolved
    corpus: Corpus
    tokenizer: Tokenizer
    world: World
    device: Device
    console: Console
    stop: StopRequest

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks and accumulated micro-batches."""
        return self.resolved.train_batch * self.options.max_seq_len

    def bytes_per_token(self, split: str) -> float:
        """To turn nats a token into bits a byte, which do not depend on the tokenizer."""
        info = self.corpus.manifest.splits[split]
        return info.bytes / info.tokens if info.tokens else math.nan


class Window:
    """Sums over the optimizer steps since the last line of metrics."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # lm loss, balance loss, micro-batches
        self.steps, self.seconds = 0, 0.0

    def add(self, lm: torch.Tensor, balance: torch.Tensor | None) -> None:
        """Stays on the device: reading a number would make the host wait."""
        zero = torch.zeros_like(lm)
        parts = (lm.detach(), zero if balance is None else balance.detach(), torch.ones_like(lm))
        self.sums += torch.stack(parts).double()


class Trainer:
    """One run from its start, or from a checkpoint, to its end; every rank has one and they move together."""

    def __init__(self, setup: Setup, engine: Any, state: checkpoint.RunState) -> None:
        self.setup, self.engine, self.state = setup, engine, state
        self.options, self.world, self.console = setup.options, setup.world, setup.console
        self.train, self.val = setup.corpus.split("train"), setup.corpus.split("val")
        seq_len = self.options.max_seq_len
        val_rows = self.val.num_rows(seq_len) if len(self.val) else 0
        self.val_rows = evaluation_rows(val_rows, self.options.eval_tokens, seq_len)
        self.order = SampleStream(self.train.num_rows(self.options.max_seq_len), self.options.seed)
        self.total_steps = setup.resolved.total_steps
        self.eval_interval = self.options.eval_interval or max(1, min(self.options.save_interval,
                                                                      math.ceil(self.total_steps / 20)))
        self.sample_interval = self.options.sample_interval or min(1000, math.ceil(self.total_steps / 10))
        self.window = Window(engine.device)
        routing.forget(engine.module.expert_layers())
        self.weights = WeightSample(engine)
        self.weights.snapshot()
        self.flops_per_token = training_flops_per_token(setup.config, self.options.max_seq_len)
        self.prompts = samples.fixed_prompts(self.val, setup.tokenizer, setup.config) if len(self.val) else []
        self.probing = Probing(self.val, setup.config, seq_len=seq_len, seed=self.options.seed, world=self.world)
        self.metrics = Metrics(setup.output, engine.monitor, state.step) if self.world.rank == 0 else None
        self.alarms = _alarms(setup, state)
        self.progress = Progress(self.console, state.step, self.total_steps)
        self.last_evaluation: Evaluation | None = None
        self.rate = 0.0  # that the latest step was taken with
        self.saved_step: int | None = None

    def fit(self) -> str:
        """Train to the end or until asked to stop; returns the reason, for people and for summary.json."""
        reason = "finished"
        if self.state.step == 0:
            self._before_first_step()
        while self.state.step < self.total_steps:
            self._step()
            self._after_step()
            if self.state.step < self.total_steps and (why := self._reason_to_stop()):
                reason = why
                break
        self._finish()
        return reason

    def _before_first_step(self) -> None:
        """Where training starts from, to see later how far it has come."""
        if self.val_rows:
            self._evaluate()
        if self.prompts:
            self._sample()

    def _reason_to_stop(self) -> str | None:
        """Why not to go on; collective, and the same on every rank."""
        if why := self.state.lost_patience(self.options.patience):
            return why
        if any_rank(self.setup.stop.wanted, self.engine.device):
            return self.setup.stop.reason or "another process was asked to stop"
        return None

    def _step(self) -> None:
        """One optimizer step: `accumulation` micro-batches through DeepSpeed."""
        started = time.perf_counter()
        # Every step has its own random numbers, so that a continued run draws what an uninterrupted one would
        torch.manual_seed(hash((self.options.seed, self.state.step, self.world.rank)))
        resolved, self.rate = self.setup.resolved, learning_rate(self.engine)
        skipped_before = self.engine.skipped_steps
        for micro_step in range(resolved.accumulation):
            rows = self.order.micro_batch(
                self.state.step, micro_step, self.world.rank, micro_batch=resolved.micro_batch,
                accumulation=resolved.accumulation, world_size=self.world.size)
            losses = forward_backward(self.engine, self.train, rows, self.options.max_seq_len)
            self.engine.step()
            self.window.add(losses.lm, losses.balance)
        self.state.step += 1
        self.window.steps += 1
        self.window.seconds += time.perf_counter() - started
        self.state.seconds += time.perf_counter() - started
        self.progress.advance(lambda: losses.lm.item(), self.setup.tokens_per_step, loss_scale(self.engine))
        self._say(self.alarms.stepped(self.state.step, skipped=self.engine.skipped_steps > skipped_before,
                                      loss_scale=loss_scale(self.engine)))

    def _after_step(self) -> None:
        step, options, last = self.state.step, self.options, self.state.step == self.total_steps
        if step == 1 or step % options.log_interval == 0 or last:
            self._log()
        if self.val_rows and (step % self.eval_interval == 0 or last):
            self._evaluate()
        if self.prompts and (step % self.sample_interval == 0 or last):
            self._sample()
        if step % options.save_interval == 0 and not last:
            self._save()

    def _log(self) -> None:
        """Means over the window; collective."""
        setup, window = self.setup, self.window
        lm, balance, count = sum_over_ranks(window.sums).tolist()
        loss, speed = lm / count, window.steps * setup.tokens_per_step / window.seconds
        routed = routing.read(self.engine.module.expert_layers())
        unchanged, ratio = self._update()
        if self.metrics:
            peak = (setup.device.peak_flops or {}).get(setup.resolved.precision)
            row = self.metrics.write("train", self.state.step, {
                "tokens": self.state.step * setup.tokens_per_step,
                "loss": loss,
                "bits_per_byte": loss / math.log(2) / setup.bytes_per_token("train"),
                "balance_loss": balance / count if setup.config.use_moe else None,
                "lr": self.rate,
                "grad_norm": _number(self.engine.get_global_grad_norm()),
                "loss_scale": loss_scale(self.engine),
                "skipped_steps": int(self.engine.skipped_steps),
                "update_ratio": ratio,
                "unchanged": unchanged,
                "tokens_per_second": speed,
                "model_flops_utilisation": speed * self.flops_per_token / (peak * self.world.size) if peak else None,
            } | (routed.figures() if routed else {}))
            if routed:
                self.metrics.expert_load(self.state.step, routed.load)
        self.progress.report(loss, speed, self.state.step * setup.tokens_per_step)
        if self.metrics:
            self._say(self.alarms.observe(row))
        self.window = Window(self.engine.device)

    def _update(self) -> tuple[float, float]:
        """(share of the weights unchanged, size of their change over their own) since the last call; collective."""
        change = self.weights.compare()
        self.weights.snapshot()
        sums = sum_over_ranks(torch.tensor([change.unchanged, change.ratio], dtype=torch.float64,
                                           device=self.engine.device))
        unchanged, ratio = (sums / self.world.size).tolist()
        return unchanged, ratio

    def _evaluate(self) -> None:
        """Validation loss and repetition; the best model so far is kept as that of the run. Collective."""
        self.progress.doing("evaluating")
        result = evaluate(self.engine, self.val, self.val_rows, seq_len=self.options.max_seq_len,
                          micro_batch=self.setup.resolved.micro_batch, world=self.world,
                          bytes_per_token=self.setup.bytes_per_token("val"))
        self.last_evaluation = result
        best = self.state.judge(result.loss)
        self.progress.evaluated(result.loss, result.bits_per_byte, self.setup.corpus.ladder, best)
        figures = self._repetition()
        if self.metrics:
            row = self.metrics.write("val", self.state.step, {
                "tokens": self.state.step * self.setup.tokens_per_step, "loss": result.loss,
                "perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte} | figures)
            self._say(self.alarms.observe(row))
        if best:
            self._export()

    def _repetition(self) -> dict[str, Any]:
        """What the model makes of held-out prompts, in figures; collective."""
        self.progress.doing("writing to count repetition")
        figures, problem = self.probing.figures(self.engine)
        if problem:
            self.console.say(f"  no figures of repetition: {problem}")
        elif figures:
            self.progress.repetition(figures, len(self.probing.probe.prompts))
        return figures

    def _say(self, alarms: list[Alarm]) -> None:
        if self.metrics:
            for alarm in alarms:
                self.progress.alarm(alarm.step, alarm.id, alarm.message)
                self.metrics.alarm(alarm.step, alarm.id, alarm.message)

    def _export(self) -> None:
        export_model(self.engine, self.setup.config, self.setup.corpus.tokenizer_path, self.setup.output / "model")

    def _sample(self) -> None:
        """Write continuations of the fixed prompts; collective because experts may be on other ranks."""
        self.progress.doing("writing samples")
        model = inference_model(self.engine, self.setup.config)
        if self.metrics:
            try:
                texts = samples.continue_prompts(model, self.setup.tokenizer, self.prompts, self.options.seed)
            except GenerationError as error:  # not finite: no reason to lose the run's last checkpoint
                self.console.say(f"  no sample: {error}")
                return
            samples.append(self.setup.output / "samples.jsonl", self.state.step, self.prompts, texts)
            lines = [f"{prompt.text}|{text}".replace("\n", " ")
                     for prompt, text in zip(self.prompts, texts, strict=True)]
            self.metrics.text("samples", "\n\n".join(lines), self.state.step)
            self.console.say(f"  sample: {lines[0]}")  # the others are in samples.jsonl and TensorBoard

    def _save(self) -> None:
        self.progress.doing("saving")
        started = time.perf_counter()
        self.saved_step = self.state.step
        path = checkpoint.save(self.engine, self.setup.output / "checkpoints", self.state, self.options.keep_last)
        self.console.say(f"  saved {path} ({time.perf_counter() - started:.1f} s)")

    def _finish(self) -> None:
        """A last checkpoint, and a model even where there is no validation split to choose one by."""
        if self.state.best_loss is None:
            self._export()
        if self.saved_step != self.state.step:
            self._save()
        self.progress.close()
        if self.metrics:
            self.metrics.close()


def _alarms(setup: Setup, state: checkpoint.RunState) -> Alarms:
    """With the history of the run, which rank 0 keeps and is the only one to raise them from."""
    corpus, schedule = setup.corpus, setup.resolved.config.get("scheduler", {}).get("params", {})
    alarms = Alarms(unigram=corpus.ladder.unigram if corpus.ladder else corpus.manifest.entropy_nats,
                    warmup=int(schedule.get("warmup_num_steps", 0)), choices=setup.config.num_experts_per_tok,
                    raised=state.alarms)
    if setup.world.rank == 0 and state.step:
        alarms.remember(read_rows(setup.output / "metrics.jsonl"))
    return alarms


def _number(value: Any) -> float | None:
    return None if value is None else float(value)

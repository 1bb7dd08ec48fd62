"""A second engine, built and stepped as the run's is, that checks and measurements train and then throw away."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from model.transformer import Losses
from training import data_sampler
from training.config.resolve import Resolved
from training.context import RunContext
from training.data_sampler import SampleStream
from training.engine import build
from training.engine.protocol import Engine
from training.processes.process_group import any_rank, sum_over_ranks

_SILENCED = ("tensorboard", "csv_monitor", "wandb", "comet", "flops_profiler", "comms_logger")
MAX_ACCUMULATION = 2  # enough to see that micro-batches are added up; more would only take longer
MAX_OVERFLOWS = 24  # a loss scale of 2**16 falls to 1 in 16 skipped steps, two to each with DeepSpeed's hysteresis


@dataclass(frozen=True)
class Step:
    """One optimizer step: mean loss of its micro-batches over all ranks, and the seconds of its parts on this one."""

    loss: float
    norm: float
    micro_seconds: float
    """The time of one micro-batch, forward and backward."""
    step_seconds: float


class TrialEngine:
    """An engine with its own weights, whose learning rates are set by hand; all methods but `clock` are collective."""

    def __init__(self, run: RunContext, accumulation: int = MAX_ACCUMULATION) -> None:
        """Build an engine like the run's own, on its training rows.

        No more than `accumulation` micro-batches are accumulated, whatever the run does.
        """
        options, resolved = run.options, run.resolved
        self.config, self.world, self.seq_len = run.config, run.world, options.max_seq_len
        self.stream, self.trained = run.corpus.split("train"), options.init_from is not None
        self.micro_batch, self.total_steps = resolved.micro_batch, resolved.total_steps
        self.accumulation = min(accumulation, resolved.accumulation)
        self.engine = build.build_engine(
            run.config,
            self._trial_config(resolved),
            seed=options.seed,
            rank=run.world.rank,
            init_from=options.init_from,
            kernels=run.kernels,
        )
        self.learning_rates = scheduled_learning_rates(self.engine, self.total_steps)
        self.peak_learning_rates = max(self.learning_rates, key=sum)
        self.engine.lr_scheduler = None
        self.order = SampleStream(self.stream.num_rows(self.seq_len), options.seed)

    def _trial_config(self, resolved: Resolved) -> dict[str, Any]:
        """Return the run's JSON without what writes files or prints, and with few accumulated micro-batches."""
        config = copy.deepcopy(resolved.config)
        for name in _SILENCED:
            if name in config:
                config[name] = config[name] | {"enabled": False}
        return config | {
            "gradient_accumulation_steps": self.accumulation,
            "train_batch_size": self.micro_batch * self.accumulation * self.world.size,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
            "dump_state": False,
        }

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.engine.device

    def rows(self, count: int, batch: int = 0) -> list[int]:
        """Return `count` rows of this rank in the run's own order."""
        first = (batch * self.world.size + self.world.rank) * count
        return [self.order[sample] for sample in range(first, first + count)]

    def step(self, rows: list[int], lr_factor: float = 0.0, before_step: Callable[[], None] | None = None) -> Step:
        """Take an optimizer step on `rows` (in every micro-batch) at `lr_factor` times the peak learning rates.

        `before_step` is called when all gradients are there. With fp16 the loss scale still falls in the first steps;
        skipped steps are taken again. The loss is nan if the scale falls to its minimum.
        """
        for _ in range(MAX_OVERFLOWS):
            try:
                step = self._try_step(rows, lr_factor, before_step)
            except Exception as error:  # DeepSpeed's own type, raised on all ranks together
                if "loss scale" not in str(error):
                    raise
                return Step(math.nan, math.nan, math.nan, math.nan)
            if self.engine.was_step_applied():
                break
        return step

    def _try_step(self, rows: list[int], lr_factor: float, before_step: Callable[[], None] | None) -> Step:
        for group, learning_rate in zip(self.engine.optimizer.param_groups, self.peak_learning_rates, strict=True):
            group["lr"] = learning_rate * lr_factor
        loss, micro_seconds = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        for micro_step in range(self.accumulation):
            started = self.clock()
            losses = self.losses(rows)
            self.engine.backward(losses.total)
            loss += losses.lm.detach().double()
            micro_seconds += self.clock() - started
            if before_step and micro_step == self.accumulation - 1:
                before_step()
            started = self.clock()
            self.engine.step()
        step_seconds = self.clock() - started
        mean = sum_over_ranks(loss).item() / self.accumulation / self.world.size
        norm = self.engine.get_global_grad_norm()
        return Step(mean, math.nan if norm is None else float(norm), micro_seconds / self.accumulation, step_seconds)

    def losses(self, rows: list[int]) -> Losses:
        """Return the losses of a forward pass over `rows`: means over their own targets that count."""
        ids, targets = data_sampler.tensors(self.stream, rows, self.seq_len, self.device)
        counted = self.stream.targets(rows, self.seq_len)
        return self.engine(ids, targets, counted, counted)

    def clock(self) -> float:
        """Return seconds, after the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def any_rank(self, flag: bool) -> bool:
        """Return True everywhere if `flag` is true anywhere."""
        return any_rank(flag, self.device)

    def close(self) -> None:
        """Give the memory back."""
        self.engine.destroy()
        del self.engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def trial_engine(run: RunContext) -> Iterator[TrialEngine]:
    """Lend a trial engine; the run that follows draws the random numbers that it would have drawn without it."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        trial = TrialEngine(run)
        try:
            yield trial
        finally:
            trial.close()


def scheduled_learning_rates(engine: Engine, total_steps: int, samples: int = 2000) -> list[list[float]]:
    """Return the learning rates of the optimizer's groups at up to `samples` steps, half of them the run's first.

    They come from DeepSpeed's own schedule object, which cannot be used afterwards.
    """

    def current() -> list[float]:
        return [float(group["lr"]) for group in engine.optimizer.param_groups]

    learning_rates, scheduler = [current()], engine.lr_scheduler
    if scheduler is None:
        return learning_rates * min(samples, max(1, total_steps))
    near = range(total_steps - 1)[: samples // 2]
    far = range(len(near), total_steps - 1, max(1, (total_steps - len(near)) // (samples // 2)))
    for index in (*near, *far):  # the step after `index` uses this learning rate
        scheduler.step(index)
        learning_rates.append(current())
    return learning_rates

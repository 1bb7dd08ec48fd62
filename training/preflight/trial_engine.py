"""The throw-away copy of a run that the checks train: the same build, the same step, rates set by hand."""

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
import torch.distributed as dist

from model import ModelConfig
from training import sampler
from training.config.resolve import Resolved
from training.engine import build
from training.engine.protocol import Engine
from training.processes.process_group import World, any_rank, sum_over_ranks
from training.sampler import SampleStream

_MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")
_SILENCED = ("flops_profiler", "comms_logger")
MOST_ACCUMULATED = 2  # enough to see that micro-batches are added up; more would only take longer
OVERFLOWS = 24  # a loss scale of 2**16 falls to 1 in 16 skipped steps, two to each with DeepSpeed's hysteresis


@dataclass(frozen=True)
class Step:
    """One optimizer step: mean loss of its micro-batches over all ranks, and how long its parts took on this one."""

    loss: float
    norm: float
    micro_seconds: float
    """Of one micro-batch, forward and backward."""
    step_seconds: float


class TrialEngine:
    """An engine of its own, built as the run's is; every rank has one and all methods are collective."""

    def __init__(
        self, config: ModelConfig, resolved: Resolved, *, seed: int, world: World, stream: Any, seq_len: int
    ) -> None:
        self.config, self.world, self.stream, self.seq_len = config, world, stream, seq_len
        self.micro_batch = resolved.micro_batch
        self.accumulation = min(MOST_ACCUMULATED, resolved.accumulation)
        self.engine = build.build_engine(config, self._silent(resolved), seed=seed, rank=world.rank)
        self.rates = schedule(self.engine, resolved.total_steps)
        self.engine.lr_scheduler = None  # from here on the rates are set by hand
        self.order = SampleStream(stream.num_rows(seq_len), seed)

    def _silent(self, resolved: Resolved) -> dict[str, Any]:
        """The run's JSON without what writes files or prints, and with few accumulated micro-batches."""
        config = copy.deepcopy(resolved.config)
        for name in (*_MONITORS, *_SILENCED):
            if name in config:
                config[name] = config[name] | {"enabled": False}
        config |= {
            "gradient_accumulation_steps": self.accumulation,
            "train_batch_size": self.micro_batch * self.accumulation * self.world.size,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
            "dump_state": False,
        }
        return config

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def peak(self) -> list[float]:
        """The highest rates of the schedule, one a parameter group."""
        return max(self.rates, key=sum)

    def rows(self, count: int, batch: int = 0) -> list[int]:
        """`count` rows of this rank from the run's own order."""
        first = (batch * self.world.size + self.world.rank) * count
        return [self.order[sample] for sample in range(first, first + count)]

    def step(self, rows: list[int], rates: list[float], *, before: Callable[[], None] | None = None) -> Step:
        """An optimizer step on `rows` (in every micro-batch); `before` is called when all gradients are there.

        With fp16 the loss scale is still falling in the first steps; skipped steps are taken again. The loss is nan if
        it falls to its minimum.
        """
        for _ in range(OVERFLOWS):
            try:
                step = self._try_step(rows, rates, before)
            except Exception as error:  # DeepSpeed's own type, raised on all ranks together
                if "loss scale" not in str(error):
                    raise
                return Step(math.nan, math.nan, math.nan, math.nan)
            if self.engine.was_step_applied():
                break
        return step

    def _try_step(self, rows: list[int], rates: list[float], before: Callable[[], None] | None) -> Step:
        for group, rate in zip(self.engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        loss, micro_seconds = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        for micro_step in range(self.accumulation):
            started = self.clock()
            losses = self.engine(*sampler.tensors(self.stream, rows, self.seq_len, self.device))
            self.engine.backward(losses.total)
            loss += losses.lm.detach().double()
            micro_seconds += self.clock() - started
            if before and micro_step == self.accumulation - 1:
                before()
            started = self.clock()
            self.engine.step()
        step_seconds = self.clock() - started
        mean = sum_over_ranks(loss).item() / self.accumulation / self.world.size
        norm = self.engine.get_global_grad_norm()
        return Step(mean, math.nan if norm is None else float(norm), micro_seconds / self.accumulation, step_seconds)

    def clock(self) -> float:
        """Seconds, after the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def agree(self, flag: bool) -> bool:
        """True everywhere if it is true anywhere."""
        return any_rank(flag, self.device)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in their order."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Give the memory back."""
        self.engine.destroy()
        del self.engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def schedule(engine: Engine, total_steps: int, samples: int = 2000) -> list[list[float]]:
    """Rates of the optimizer's groups at up to `samples` steps of the run, the first half of them at its start.

    Asked of DeepSpeed's own schedule object, which is spent afterwards.
    """

    def now() -> list[float]:
        return [float(group["lr"]) for group in engine.optimizer.param_groups]

    rates, scheduler = [now()], engine.lr_scheduler
    if scheduler is None:
        return rates * min(samples, max(1, total_steps))
    near = range(total_steps - 1)[: samples // 2]
    far = range(len(near), total_steps - 1, max(1, (total_steps - len(near)) // (samples // 2)))
    for index in (*near, *far):  # the step after `index` uses this rate
        scheduler.step(index)
        rates.append(now())
    return rates


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """The run that follows draws what it would have drawn without the checks."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield

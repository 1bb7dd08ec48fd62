"""One trial of `--tune`, in processes of its own: whatever becomes of it, the session that tunes goes on."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from common.console import Console
from common.hardware import detect
from corpus.shards import Corpus
from model import ModelConfig
from training.config.command_line import Options
from training.config.resolve import Resolved
from training.context import RunContext
from training.engine.kernels import with_kernels
from training.preflight.cost_checks import OutOfMemory, allocations, measure_cost
from training.preflight.trial_engine import TrialEngine
from training.processes.device_settings import (
    keep_freed_memory,
    reproducible_kernels,
    share_cores,
    use_huge_pages,
)
from training.processes.network import free_port
from training.processes.process_group import World
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog

TIMED_SECONDS = 10.0  # that the timed steps may take together, but for the fewest


@dataclass(frozen=True)
class Work:
    """What a trial trains; `resolved` lacks nothing but its schedule."""

    options: Options
    model: ModelConfig
    resolved: Resolved
    corpus: Path


@dataclass(frozen=True)
class Measured:
    """What came of a trial: seconds of a whole optimizer step, bytes of the fullest process, or why there are none."""

    step_seconds: float = 0.0
    peak_bytes: int = 0
    problem: str = ""


def run_trial(work: Work, processes: int, timeout: float) -> Measured:
    """Train a few steps in `processes` new processes, which are ended after `timeout` seconds; never raise for them."""
    results: SimpleQueue[Measured] = get_context("spawn").SimpleQueue()
    deadline = time.monotonic() + timeout
    arguments = (work, processes, free_port(), results)
    started = start_processes(_rank, arguments, processes, join=False, start_method="spawn")
    ranks = cast(ProcessContext, started)  # None with join=True
    try:
        while not ranks.join(max(0.0, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                return Measured(problem=f"did not end in {timeout:.0f} s")
    except ProcessRaisedException as error:
        return Measured(problem=f"failed: {str(error).strip().splitlines()[-1][:200]}")
    except ProcessExitedException:
        if results.empty():
            return Measured(problem="killed, perhaps for lack of memory")
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()
    return results.get()


# --- in the processes of the trial ------------------------------------------------------------------------------------


def _rank(rank: int, work: Work, processes: int, port: int, results: SimpleQueue[Measured]) -> None:
    """Measure as rank `rank`; rank 0 puts the result, and whichever runs out of memory puts that."""
    _become_rank(rank, processes, port)
    try:
        with allocations():
            measured = _measure(work)
    except OutOfMemory:
        results.put(Measured(problem="out of memory"))
        os._exit(1)  # the others may wait in a collective; the session ends them
    else:
        if rank == 0:
            results.put(measured)
        dist.destroy_process_group()
        os._exit(0)  # a thread of Gloo that is still alive would end this process with SIGABRT, and PyTorch log that


def _become_rank(rank: int, processes: int, port: int) -> None:
    os.setsid()  # Ctrl-C is for the process that tunes, which then ends these
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    with suppress(OSError):  # if memory runs out, the kernel is to take this one, not the session
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_SIZE": processes}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})


def _measure(work: Work) -> Measured:
    world, device = World.from_environment(), detect()
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        share_cores(world.local_size)
        use_huge_pages()
        keep_freed_memory()
    else:
        reproducible_kernels(work.model)
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device.kind == "cuda" else "gloo", rank=world.rank, world_size=world.size)
    corpus, console = Corpus.open(work.corpus, verify="size"), Console(world.rank)
    stop = StopRequest(console)
    watchdog = Watchdog(world.rank, world.size, console, stop)
    run = RunContext(work.options, Path(), work.model, work.resolved, corpus, world, device, console, stop, watchdog)
    trial = TrialEngine(with_kernels(run, None), work.resolved.accumulation)
    cost = measure_cost(trial, work.resolved.micro_batch, seconds=TIMED_SECONDS)
    return Measured(cost.whole_step(trial.accumulation), cost.peak_bytes)

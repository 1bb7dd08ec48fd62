"""One trial of `--tune`, in processes of its own: whatever becomes of it, the session that tunes goes on.

`run_trial` starts the processes and reads their results; each of them is `python -m training.planning.tune_trial`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.hardware import detect
from model import ModelConfig
from training.config.resolve import Resolved
from training.processes.network import free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAM: tuple[str, ...] = ("-m", "training.planning.tune_trial")
TIMED_SECONDS = 10.0  # that the timed steps may take together, but for the fewest
_POLL = 0.1
_GRACE = 10.0  # seconds for the other ranks to end by themselves, once one has failed


@dataclass(frozen=True)
class Work:
    """What a trial trains; `ds_config` is resolved but for its schedule."""

    model: dict[str, Any]
    ds_config: dict[str, Any]
    corpus: str
    seq_len: int
    seed: int
    kernels: str = "auto"
    """auto or plain, as --kernels."""


@dataclass(frozen=True)
class Measured:
    """What came of a trial: seconds of a whole optimizer step, bytes of the fullest process, or why there are none."""

    step_seconds: float = 0.0
    peak_bytes: int = 0
    problem: str = ""


def run_trial(work: Work, processes: int, timeout: float) -> Measured:
    """Train a few steps in `processes` new processes, which are ended after `timeout` seconds; never raise for them."""
    with tempfile.TemporaryDirectory(prefix="bufudu-tune-") as scratch:
        folder = Path(scratch)
        (folder / "work.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
        ranks = _start(folder, processes)
        try:
            ended = _wait(ranks, folder, timeout)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return _result(folder, ranks, ended, timeout)


def _start(folder: Path, processes: int) -> list[subprocess.Popen]:
    port = free_port()
    ranks = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, *PROGRAM, str(folder), str(rank)]
        with (folder / f"rank{rank}.log").open("w", encoding="utf-8") as log:
            environment = os.environ | {name: str(value) for name, value in place.items()}
            # a session of its own: Ctrl-C is for the process that tunes, which then ends these
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        ranks.append(process)
        with suppress(OSError):  # if memory runs out, the kernel is to take this one, not the session
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000", encoding="ascii")
    return ranks


def _wait(ranks: Sequence[subprocess.Popen], folder: Path, timeout: float) -> bool:
    """Wait until all have ended, or one has failed and the others had time to; return whether they did in time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        if None not in codes:
            return True
        if any(codes) or any(_read(folder, rank).problem for rank in range(len(ranks))):
            deadline = min(deadline, time.monotonic() + _GRACE)
        time.sleep(_POLL)
    return any(process.poll() is not None for process in ranks)


def _read(folder: Path, rank: int) -> Measured:
    path = folder / f"rank{rank}.json"
    return Measured(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Measured()


def _result(folder: Path, ranks: Sequence[subprocess.Popen], ended: bool, timeout: float) -> Measured:
    results = [_read(folder, rank) for rank in range(len(ranks))]
    if problem := next((result.problem for result in results if result.problem), ""):
        return Measured(problem=problem)
    if ended and all(result.step_seconds for result in results):
        return results[0]
    if not ended:
        return Measured(problem=f"did not end in {timeout:.0f} s")
    failed = next((rank for rank, process in enumerate(ranks) if process.returncode > 0), None)
    if failed is None:
        return Measured(problem="killed, perhaps for lack of memory")
    lines = (folder / f"rank{failed}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Measured(problem=f"failed: {lines[-1][:200] if lines else 'without a word'}")


# --- in the processes of the trial ------------------------------------------------------------------------------------


def main(folder: Path, rank: int) -> None:
    """Measure as rank `rank`, and write the result; out of memory is one."""
    import torch.distributed as dist

    from training.preflight.cost_checks import OutOfMemory, is_out_of_memory

    work = Work(**json.loads((folder / "work.json").read_text(encoding="utf-8")))
    try:
        result = _measure(work)
        dist.destroy_process_group()
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
            raise
        result = Measured(problem="out of memory")
    partial = folder / f"rank{rank}.partial"
    partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
    partial.replace(folder / f"rank{rank}.json")
    if result.problem:
        os._exit(0)  # the others may wait in a collective; the session ends them


def _measure(work: Work) -> Measured:
    import torch
    import torch.distributed as dist

    from corpus.shards import Corpus
    from training.engine.kernels import agree_on_kernels
    from training.preflight.cost_checks import measure_cost
    from training.preflight.trial_engine import TrialEngine
    from training.processes.device_settings import (
        keep_freed_memory,
        reproducible_kernels,
        share_cores,
        use_huge_pages,
    )
    from training.processes.process_group import World, gather_from_ranks

    world, device, model = World.from_environment(), detect(), ModelConfig(**work.model)
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        share_cores(world.local_size)
        use_huge_pages()
        keep_freed_memory()
    else:
        reproducible_kernels(model)
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device.kind == "cuda" else "gloo", rank=world.rank, world_size=world.size)
    resolved = Resolved(work.ds_config, [], 0)
    kernels: tuple[str, ...] = ()
    if work.kernels == "auto" and device.kind == "cuda":
        kernels, _ = agree_on_kernels(model, resolved.micro_batch * work.seq_len, resolved.precision)
    trial = TrialEngine(
        model,
        resolved,
        seed=work.seed,
        world=world,
        stream=Corpus.open(Path(work.corpus), verify="size").split("train"),
        seq_len=work.seq_len,
        accumulation=resolved.accumulation,
        kernels=kernels,
    )
    cost = measure_cost(trial, trial.rows(resolved.micro_batch), full_size=True, steps=1)
    seconds = [step.micro_seconds * trial.accumulation + step.step_seconds for step in trial.timed_steps(TIMED_SECONDS)]
    slowest = [max(times) for times in zip(*gather_from_ranks(seconds), strict=True)]
    return Measured(statistics.median(slowest), cost.peak_bytes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Memory and waits of real sessions of train.py on the GPUs at hand, beside what `--plan` and the preflight say.

    python -m benchmarks.t4.gpu_session --data DIR [--micro 32 64 96] [--ep 1 2] [--ds_config ds_configs/t4x2.json]

For every micro-batch and `ep_size` it asks `--plan`, runs the preflight, and trains some steps, each in processes of
its own. A wait is a moment at which the host stands still until the GPU has done all that it was asked to; they are
found by PyTorch's own sync debug mode, with the line of code that waits. Without a GPU, a CUDA build of PyTorch on a
driver whose kernels compute nothing says the same about memory and waits (`--null_driver`): allocator, dispatch and
streams are real there, numbers are not, so that what stumbles over wrong numbers is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.inputs import file, prepared
from training.processes.network import free_port

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
STEPS = 4
SECONDS = 900.0  # for one session, against a hang
_TOTAL = re.compile(r"(?:fits|does NOT fit): ([\d.]+ [GM]iB)")
_MEASURED = re.compile(r"([\d.]+) GiB of")


# --- in the processes that train --------------------------------------------------------------------------------------


@contextmanager
def numbers_not_real() -> Iterator[None]:
    """Replace what would stumble over the numbers of a driver whose kernels compute nothing, and NCCL by gloo."""
    import torch
    import torch.distributed as dist

    from model import moe
    from model.kernels import check
    from training import rollback
    from training.checkpointing import engine_state
    from training.monitoring import accumulator
    from training.planning.memory import ROUTING_IMBALANCE
    from training.preflight import step_checks
    from training.processes import process_group

    init, on_host, after_gate = dist.init_process_group, moe._on_host, moe.DeepSpeedMoE._after_gate
    summed = process_group.sum_over_ranks

    def even(size_E: Any, routes: int) -> list[int]:
        on_host(size_E, routes)  # for its wait
        return [moe._padded(routes // len(size_E))] * len(size_E)

    def full(layer: Any, gate: Any, args: tuple, output: tuple) -> tuple:
        balance_loss, _, experts, *rest = after_gate(layer, gate, args, output)
        tokens = args[0].shape[0] * layer.top_k / int(gate.wg.weight.shape[0])
        return (balance_loss, moe._padded(int(tokens * ROUTING_IMBALANCE)), experts, *rest)

    def ones(values: Any) -> Any:
        return torch.ones(summed(values).shape, dtype=values.dtype)  # on the CPU, where they are

    with ExitStack() as stack:
        for where, name, other in (
            (dist, "init_process_group", lambda _backend, **more: init("gloo", **more)),
            (moe, "_on_host", even),
            (moe.DeepSpeedMoE, "_after_gate", full),
            (torch.special, "entr", torch.neg),  # compiled at run time by NVRTC
            (check, "problem", lambda *_: None),
            (check, "times", lambda *_: (2.0, 1.0)),
            (rollback.NonFiniteMonitor, "check_loss", lambda *_: None),
            (rollback.NonFiniteMonitor, "check_step", lambda *_: None),
            (step_checks, "overfit", lambda trial, rows, _seconds: [trial.step(rows, 1.0).loss] * 2),
            (accumulator.MetricAccumulator, "steps_per_second", lambda _accumulator: 1.0),
            (engine_state, "master_weights_finite", lambda _engine: True),
        ):
            stack.enter_context(mock.patch.object(where, name, other))
        for module in [m for n, m in sys.modules.items() if n.startswith("training.") and m]:
            if getattr(module, "sum_over_ranks", None) is summed:
                stack.enter_context(mock.patch.object(module, "sum_over_ranks", ones))
        yield


class Waits:
    """Counts the waits of the steps that it is told of, by the lines of code that wait."""

    def __init__(self) -> None:
        self.sites: Counter[str] = Counter()
        self.steps = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what waits within, as one step."""
        import torch

        def note(*_args: Any, **_more: Any) -> None:
            own = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack(limit=12)[:-1]]
            frames = [f for f in own if not f.startswith(("warnings.py", "gpu_session.py"))]
            self.sites[" < ".join(reversed(frames[-3:]))] += 1

        def explicit(original: Any) -> Any:
            def wait(*args: Any, **more: Any) -> Any:
                note()
                return original(*args, **more)

            return wait

        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            stack.enter_context(mock.patch.object(warnings, "showwarning", note))
            for where in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
                stack.enter_context(mock.patch.object(where, "synchronize", explicit(where.synchronize)))
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.steps += 1


def worker(result: Path, flags: Sequence[str], *, null_driver: bool) -> int:
    """Run train.py here with its waits counted; write this rank's figures to `result`."""
    import torch

    from training import run
    from training.trainer import Trainer

    waits, step, fit = Waits(), Trainer._step, Trainer.fit

    def counted_step(trainer: Trainer) -> str | None:
        if trainer.state.step < STEPS - 2:  # the first ones allocate
            return step(trainer)
        with waits.counted():
            return step(trainer)

    def measured_fit(trainer: Trainer) -> str:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return fit(trainer)

    with ExitStack() as stack:
        if null_driver:
            stack.enter_context(numbers_not_real())
        stack.enter_context(mock.patch.object(Trainer, "_step", counted_step))
        stack.enter_context(mock.patch.object(Trainer, "fit", measured_fit))
        status = run.main(flags, "")
    figures = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
        "waits": {site: count / waits.steps for site, count in waits.sites.most_common()} if waits.steps else {},
    }
    result.write_text(json.dumps(figures), encoding="utf-8")
    return status


# --- around them ------------------------------------------------------------------------------------------------------


def session(folder: Path, processes: int, flags: Sequence[str], *, null_driver: bool) -> list[dict[str, Any]]:
    """Run train.py with `flags` in so many processes; return each rank's figures, none for a rank that failed."""
    folder.mkdir(parents=True)
    port = free_port()
    ranks = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.t4.gpu_session", "--worker", str(folder / f"rank{rank}.json")]
        command += [*(["--null_driver"] if null_driver else []), "--", *flags, "--output", str(folder / "run")]
        environment = os.environ | {name: str(value) for name, value in place.items()}
        with (folder / f"rank{rank}.txt").open("w", encoding="utf-8") as log:
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in ranks:
            process.wait(SECONDS)
    finally:
        for process in ranks:
            process.kill()
    files = [folder / f"rank{rank}.json" for rank in range(processes)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]


def _gib(text: str) -> float:
    number, unit = text.split()
    return float(number) / (1 if unit == "GiB" else 1024)


def planned(flags: Sequence[str]) -> float:
    """Return the GiB that `--plan` says, those of the CUDA context and the allocator included; nan if it fails."""
    output = subprocess.run(
        [sys.executable, "train.py", "--plan", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    found = _TOTAL.search(output)
    return _gib(found[1]) if found else float("nan")


def _figures(args: argparse.Namespace, micro: int, ep_size: int, work: Path) -> dict[str, Any]:
    rows = args.processes * micro
    flags = ["--deepspeed_config", str(args.ds_config), "--data", str(args.data), "--ep_size", str(ep_size)]
    flags += ["--set", f"train_micro_batch_size_per_gpu={micro}", "gradient_accumulation_steps=4"]
    flags += [f"train_batch_size={4 * rows}", *(["zero_optimization.overlap_comm=false"] if ep_size > 1 else [])]
    run = [*flags, "--max_steps", str(STEPS), "--log_interval", str(STEPS), "--eval_tokens", "0"]
    null = {"null_driver": args.null_driver}
    checked = session(work / f"check-{micro}-{ep_size}", args.processes, [*run, "--preflight"], **null)
    trained = session(work / f"train-{micro}-{ep_size}", args.processes, [*run, "--skip_preflight"], **null)
    report = work / f"check-{micro}-{ep_size}" / "run" / "preflight.json"
    text = report.read_text(encoding="utf-8") if report.is_file() else ""
    measured = _MEASURED.search(text)
    return {
        "micro": micro,
        "ep_size": ep_size,
        "plan": planned(flags),
        "preflight": float(measured[1]) if measured else float("nan"),
        "preflight_reserved": max((rank["reserved"] for rank in checked), default=0) / GIB,
        "allocated": max((rank["allocated"] for rank in trained), default=0) / GIB,
        "reserved": max((rank["reserved"] for rank in trained), default=0) / GIB,
        "waits": trained[0]["waits"] if trained else {},
    }


def main(argv: Sequence[str]) -> int:
    """Print the table; return 1 if a session failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder made by prepare.py")
    parser.add_argument("--ds_config", type=file, default=ROOT / "ds_configs" / "t4x2.json")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--micro", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--ep", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--null_driver", action="store_true")
    parser.add_argument("--work", type=Path, help="keep the sessions' folders here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(args.worker, args.flags, null_driver=args.null_driver)
    try:
        args.data = prepared(str(args.data))
    except argparse.ArgumentTypeError as error:
        parser.error(f"--data: {error}")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        print("micro-batch | ep_size | plan | preflight | training allocated | reserved | waits a step", flush=True)
        for ep_size in args.ep:
            for micro in args.micro:
                row = _figures(args, micro, ep_size, work)
                failed += not row["waits"]
                numbers = (f"{row[key]:.2f}" for key in ("plan", "preflight", "allocated", "reserved"))
                print(" | ".join([str(micro), str(ep_size), *numbers, f"{sum(row['waits'].values()):g}"]), flush=True)
        print("waits a step by line:")
        for site, count in row["waits"].items():
            print(f"  {count:g}  {site}")
    return 1 if failed else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # without a real driver, what CUDA's libraries do at the end of a process fails

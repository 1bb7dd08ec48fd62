"""Memory and waits of real sessions of train.py on the GPUs at hand, beside what `--plan` and the preflight say.

    python -m benchmarks.gpu.memory --data DIR [--micro 32 64 96] [--ep 1 2] [--ds_config ds_configs/t4x2.json]

For every micro-batch and `ep_size` it asks `--plan`, runs the preflight, and trains some steps, each in processes of
its own. A wait is a moment at which the host stands still until the GPU has done all that it was asked to, found with
the line of code that waits. Without a GPU, a CUDA build of PyTorch on a driver whose kernels compute nothing says the
same about memory and waits (`--null_driver`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.sessions import ROOT, planned_gib, session
from benchmarks.gpu.watched import Watch
from benchmarks.inputs import file, prepared

STEPS = 4
SECONDS = 900.0  # for one session, against a hang
_MEASURED = re.compile(r"([\d.]+) GiB of")


def _figures(args: argparse.Namespace, micro: int, ep_size: int, work: Path) -> dict[str, Any]:
    rows = args.processes * micro
    flags = ["--deepspeed_config", str(args.ds_config), "--data", str(args.data), "--ep_size", str(ep_size)]
    flags += ["--kernels", args.kernels, "--set", f"train_micro_batch_size_per_gpu={micro}"]
    flags += ["gradient_accumulation_steps=4", f"train_batch_size={4 * rows}"]
    flags += ["zero_optimization.overlap_comm=false"] if ep_size > 1 else []
    run = [*flags, "--max_steps", str(STEPS), "--log_interval", str(STEPS), "--eval_tokens", "0"]
    watch, name = Watch(null_driver=args.null_driver, waits=True), f"{micro}-{ep_size}"
    checked = session(work / f"check-{name}", args.processes, [*run, "--preflight"], watch, SECONDS)
    trained = session(work / f"train-{name}", args.processes, [*run, "--skip_preflight"], watch, SECONDS)
    measured = _MEASURED.search(checked.said)
    plan = subprocess.run(
        [sys.executable, "train.py", "--plan", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "plan": planned_gib(plan.stdout),
        "preflight": float(measured[1]) if measured else float("nan"),
        "allocated": trained.most("allocated"),
        "reserved": trained.most("reserved") + trained.most("outside"),
        "waits": trained.figures[0]["waits"] if trained.figures else {},
    }


def main(argv: Sequence[str]) -> int:
    """Print the table; return 1 if a session failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare.py")
    parser.add_argument("--ds_config", type=file, default=ROOT / "ds_configs" / "t4x2.json")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--micro", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--ep", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kernels", choices=["auto", "plain"], default="auto")
    parser.add_argument("--null_driver", action="store_true")
    parser.add_argument("--work", type=Path, help="keep the sessions' folders here")
    args = parser.parse_args(argv)
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
    sys.exit(main(sys.argv[1:]))

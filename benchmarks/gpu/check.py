"""Is this machine's GPU fit for a run, and are our figures true there? One table, in nine minutes.

    benchmarks/gpu/check.sh                            on one or two GPUs, with sample stories
    benchmarks/gpu/check.sh --wheels DIR               install offline first, from a folder of wheels
    benchmarks/gpu/check.sh --data DIR --only speed    one step, on a folder made by prepare.py
    benchmarks/gpu/check.sh --null_driver --minutes 60 every path, on a driver that computes nothing

Every step has a time limit, and every figure comes from processes of its own, so that one that fails is a line in the
table and the rest goes on. docs/dev/gpu.md says what each line proves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steps import STEPS, Step
from benchmarks.gpu.table import FAILED, HEADER, Line, summed_up, table
from benchmarks.inputs import prepared
from common.errors import UserError

REPORT = "check.json"
LIMIT = 1.5  # times the planned seconds that a step may take, and at least these:
LEAST = 60.0
NEEDED = ("self_check", "data")  # steps that others build on


def lines_of(step: Step, bench: Bench, ends: float) -> Iterator[Line]:
    """Yield a step's lines, each with its seconds; a failure, of whatever kind, is one. `ends`: of the whole check."""
    begun = time.monotonic()
    bench.deadline = min(begun + max(LEAST, LIMIT * step.seconds) * bench.stretch, ends)
    try:
        for line in step.take(bench):
            now = time.monotonic()
            yield Line(line.step, line.verdict, line.found, line.figures, now - begun)
            begun = now
    except Exception as error:
        text = str(error) or type(error).__name__
        yield Line(step.name.replace("_", "-"), FAILED, text, {"error": type(error).__name__}, time.monotonic() - begun)


def check(bench: Bench, steps: Sequence[Step], seconds: float) -> list[Line]:
    """Take the steps in their order, `seconds` in all at most; print each line as it comes."""
    ends, lines = time.monotonic() + seconds, []
    print(HEADER, flush=True)
    for step in steps:
        for line in lines_of(step, bench, ends):
            lines.append(line)
            print(line, flush=True)
        bench.tidy()
        if step.name == "self_check" and not bench.machine.get("gpus"):
            break
    return lines


def _emptied(work: Path) -> Path:
    """Return the folder, new or without what an earlier check has left; UserError if it holds something else."""
    if work.is_dir() and any(work.iterdir()) and not (work / REPORT).is_file():
        raise UserError(f"--work {work} holds something else than an earlier check: name another folder")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / REPORT).write_text("{}\n", encoding="utf-8")
    return work


def _prepared(data: Path) -> Path:
    try:
        return prepared(str(data))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--data: {error}") from None


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=[1, 2], help="GPUs to use; if not given, two where there are")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder made by prepare.py, in place of stories")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install requirements.txt from these wheels alone")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-check"), help="folder of logs and of check.json")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together (default %(default)g)")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--null_driver", action="store_true", help="the driver computes nothing: numbers are not real")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Print the table and write check.json; return 1 if a line failed."""
    args, started = _arguments(argv), time.monotonic()
    steps = [step for step in STEPS if not args.only or step.name in (*args.only, *NEEDED)]
    steps = [step for step in steps if args.wheels or step.name != "installed"]
    planned, all_planned = (sum(step.seconds for step in some) for some in (steps, STEPS))
    stretch = args.minutes * 60 / all_planned
    print(f"{len(steps)} steps, planned for {planned * stretch:.0f} s of {args.minutes * 60:.0f}: ", end="")
    print(", ".join(f"{step.name} {step.seconds * stretch:.0f}" for step in steps), flush=True)
    data = _prepared(args.data) if args.data else None
    work = _emptied(args.work.resolve())
    bench = Bench(work, args.processes, args.null_driver, data, args.wheels, max(1.0, stretch))
    lines = check(bench, steps, args.minutes * 60)
    seconds = time.monotonic() - started
    result = {"seconds": round(seconds, 1), "planned": planned * stretch, "lines": [line.as_json() for line in lines]}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (work / REPORT).write_text(text, encoding="utf-8")
    print(f"\n{table(lines)}\n\n{summed_up(lines, seconds, planned * stretch)}; {work}/{REPORT} has all figures")
    return 1 if any(line.verdict == FAILED for line in lines) or not lines else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"check: {error}")

"""Try configurations one after the other, and say which one won.

python sweep.py --set optimizer.params.lr=1e-3,2e-3,4e-3 --seeds 1,2,3 -- --data corpus --max_steps 500
python sweep.py --set optimizer.params.lr=1e-3,2e-3 --set bufudu.num_experts=2,4 --random 3 --budget 8h -- --data corpus
python sweep.py --set optimizer.params.lr=1e-3,2e-3,4e-3 --stop_losers 0.05 -- --data corpus

What follows `--` goes to train.py. The same command continues a sweep that was stopped or killed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import Parser, amount, duration, one_of, positive, run_script, whole, write_output_file
from common.errors import UserError
from diagnosis.report.messages import LANGUAGES

if TYPE_CHECKING:
    from experiments.sweep import Sweep
    from experiments.sweep_plan import PlannedRun

# Given to train.py for each run by the sweep itself, or of no use in it
NOT_FOR_TRAIN = ("--output", "--seed", "--resume", "--plan", "--preflight", "--budget")


def whole_numbers(text: str) -> list[int]:
    """Convert seeds as in 1,2,3."""
    numbers = [whole(part.strip()) for part in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} holds a number twice")
    return numbers


def _parser() -> Parser:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="sweep.py [flags] -- [train.py's flags]",
    )
    add = parser.add_argument
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE,...",
        help="a key of the JSON and its values; bufudu.NAME is train.py's flag --NAME",
    )
    add(
        "--seeds",
        type=whole_numbers,
        default=[42],
        metavar="N,N,...",
        help="seeds, each with every configuration (default 42)",
    )
    add("--random", type=positive, metavar="N", help="draw N configurations instead of taking all")
    add(
        "--budget",
        type=duration,
        metavar="TIME",
        help="time for all runs together, e.g. 8h; a later call may give more",
    )
    add(
        "--stop_losers",
        type=amount,
        nargs="?",
        const=0.1,
        metavar="SHARE",
        help="give up a run whose validation loss is by more than this share (0.1 if not given) above that of the best "
        "finished run at the same tokens, at two evaluations in a row after a fifth of the way",
    )
    add("--retry", action="store_true", help="start runs again that failed")
    add("--num_gpus", type=positive, metavar="N", help="processes of a run (default: all GPUs, or 2 on a CPU)")
    add(
        "--output",
        type=Path,
        default=Path("runs/sweep"),
        metavar="DIR",
        help="folder of the sweep (default %(default)s)",
    )
    add(
        "--lang",
        default="en",
        type=one_of(*LANGUAGES),
        metavar="|".join(LANGUAGES),
        help="language of table and page (%(default)s)",
    )
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags, those of train.py in `train`; raise UserError for a wrong one."""
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    args = _parser().parse_args(words[:cut])
    args.train = words[cut + 1 :]
    for word in args.train:
        if (flag := word.partition("=")[0]) in NOT_FOR_TRAIN:
            raise UserError(f"{flag} after -- is not for a sweep: sweep.py has its own --output, --seeds and --budget")
    return args


def run(args: argparse.Namespace) -> None:
    """Check everything, do the runs, compare them."""
    from common.hardware import detect
    from experiments.sweep import Sweep, SweepSettings
    from experiments.sweep_plan import plan_runs
    from training.processes.lock import RunLock
    from training.start import check_command

    device = detect()
    processes = args.num_gpus or (min(2, device.count) if device.kind == "cpu" else device.count)
    runs = plan_runs(args.set, args.seeds, args.random)
    settings = SweepSettings(args.output, tuple(args.train), processes, args.budget, args.stop_losers)
    sweep = Sweep(settings, runs, lambda line: print(line, flush=True))
    _check_flags(runs, args.train)
    (config, *_) = [check_command(sweep.train_arguments(planned), processes) for planned in runs]
    lock = RunLock(args.output)
    lock.acquire(print)
    if args.retry:
        sweep.forget("failed")
    print(f"{len(runs)} runs in {args.output}, {processes} process{'es' if processes > 1 else ''} each", flush=True)
    why = sweep.finish()
    if why:
        print(f"{why}: the same command with more time goes on")
    _report(sweep, config, args.lang)


def _check_flags(runs: list[PlannedRun], train: list[str]) -> None:
    """Raise UserError for a flag of train.py that would silently win over a value of the sweep."""
    for key in (override.partition("=")[0] for override in runs[0].overrides):
        flag = f"--{key.removeprefix('bufudu.')}"
        if key.startswith("bufudu.") and flag in (word.partition("=")[0] for word in train):
            raise UserError(f"--set {key} and {flag} after -- contradict each other: leave one out")


def _report(sweep: Sweep, config: Path, language: str) -> None:
    """Print the table, write the page and the winner; say what did not finish."""
    from experiments.comparison import compare
    from experiments.page import page
    from experiments.sweep_plan import complete_config
    from experiments.table import screen

    folder = sweep.settings.folder
    print(", ".join(f"{count} {state}" for state, count in sweep.counts().items()))
    places = [sweep.place(planned) for planned in sweep.runs if sweep.figures(planned)]
    if not places:
        raise UserError(f"no run left anything to compare: see {folder}/logs")
    found = compare(places, language=language)
    print(f"\n{screen(found)}")
    write_output_file(folder / "comparison.html", page(found))
    write_output_file(folder / "comparison.json", _as_json(found))
    print(f"page: {folder}/comparison.html")
    best = found["experiments"][0]
    if best["mean"] is not None:
        name = Path(best["runs"][0]["path"]).name
        winner = next(planned for planned in sweep.runs if planned.name == name)
        winning = complete_config(config, sweep.settings.arguments, winner.overrides)
        write_output_file(folder / "winner.json", _as_json(winning))
        print(f"winner: --deepspeed_config {folder}/winner.json")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = "stopped; the same command goes on"
    try:
        return run_script(lambda: run(parse_arguments(argv)), interrupted=lambda: said, output_is_the_work=False)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())

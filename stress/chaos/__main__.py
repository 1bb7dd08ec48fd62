"""Break real two-process runs in every way we can think of, and see whether they continue as if nothing had been.

    python -m stress.chaos --work runs/chaos                                  everything, about an hour
    python -m stress.chaos --work runs/chaos --only kills --trials 50 --seed 0

Every trial starts `deepspeed --num_gpus 2 train.py` on a tiny model, does its damage from outside and starts the same
command again. The trials go into DIR/trials.jsonl as they end, the tables into DIR/tables.md, what the runs printed
into DIR/logs. Status 1 if any run did not survive.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stress.chaos import kills, stops
from stress.chaos.record import Journal, Trial, closing_table, detail_table, grouped_table, read
from stress.chaos.workplace import Workplace
from stress.machines import at_random, cases

CATEGORIES: dict[str, Callable[[Workplace, Journal, int], None]] = {
    "kills": kills.run,
    "stops": stops.run,
    "machines": cases.run,
    "machines-random": at_random.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as above."""
    options = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no run outlives the harness
    work = Workplace(options.work, options.seed)
    journal = Journal(work.folder)
    for name in options.only or CATEGORIES:
        CATEGORIES[name](work, journal, options.trials)
        _write_tables(read(journal.path), work.folder / "tables.md")
    print("\n" + closing_table(read(journal.path)))
    return 0 if all(trial.survived for trial in journal.trials) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress.chaos",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, metavar="DIR", help="a folder of its own; corpus and reference are kept")
    add(
        "--only",
        nargs="+",
        choices=list(CATEGORIES),
        default=[],
        metavar="NAME",
        help=f"of {', '.join(CATEGORIES)} (all)",
    )
    add("--trials", type=int, default=50, metavar="N", help="kills (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the moments (%(default)s)")
    return parser.parse_args(argv)


def _write_tables(every: Sequence[Trial], path: Path) -> None:
    parts = [closing_table(every)]
    for name in dict.fromkeys(trial.category for trial in every):
        trials = [trial for trial in every if trial.category == name]
        parts.append(f"## {name}")
        if name == kills.CATEGORY:
            parts += [grouped_table(trials, fact) for fact in ("killed", "moment")]
        parts.append(detail_table(trials))
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

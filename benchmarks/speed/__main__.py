"""python -m benchmarks.speed --work runs/speed [--only PART...] [--peer PATH]

Each part runs, prints its table and leaves PART.json and PART.md in the work folder; the table of aims comes last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.inputs import Skip
from benchmarks.race import race
from benchmarks.speed import aims, experts, generation, preparation, scaling, step
from benchmarks.t4 import cost_model
from common.errors import UserError

_PARTS = (step, experts, scaling, preparation, generation, cost_model, race)
PARTS: dict[str, ModuleType] = {part.NAME: part for part in _PARTS}


def main(argv: Sequence[str]) -> int:
    """Exit status: 2 if a part got wrong input or one asked for by name was left out, else 1 if one failed; the others
    run all the same.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), metavar="DIR", help="results (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    for part in PARTS.values():
        part.add_flags(parser)
    flags = parser.parse_args(argv)
    try:
        flags.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--work {flags.work}: no folder can be made there ({error.strerror}): give another")
    status = max([_run(PARTS[name], flags) for name in flags.only or PARTS])
    print("\n".join(aims.table(flags.work)))
    return status


def _run(part: ModuleType, flags: argparse.Namespace) -> int:
    """The part's exit status."""
    started = time.monotonic()
    try:
        result = part.measure(flags.work, flags, lambda line: print(line, flush=True))
    except Skip as reason:
        print(f"{part.NAME}: left out: {reason}", flush=True)
        return 2 if flags.only else 0  # who asks for a part by its name waits for its figures
    except UserError as error:
        print(f"{part.NAME}: {error}", file=sys.stderr, flush=True)
        return 2
    except RuntimeError as error:
        print(f"{part.NAME}: failed: {error}", file=sys.stderr, flush=True)
        return 1
    lines = part.table(result)
    (flags.work / f"{part.NAME}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    (flags.work / f"{part.NAME}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(["", *lines, "", f"{part.NAME}: {time.monotonic() - started:.0f} s", ""]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

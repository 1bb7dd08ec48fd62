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

from benchmarks.speed import Skip, aims, experts, generation, preparation, race, scaling, step, t4
from corpus.errors import UserError

PARTS: dict[str, ModuleType] = {part.NAME: part for part in (step, experts, scaling, preparation, generation, t4, race)}


def main(argv: Sequence[str]) -> int:
    """Exit status: 2 for wrong flags, 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), metavar="DIR", help="results (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (all)")
    for part in PARTS.values():
        part.add_flags(parser)
    flags = parser.parse_args(argv)
    flags.work.mkdir(parents=True, exist_ok=True)
    failed = [name for name in flags.only if not _run(PARTS[name], flags)]
    print("\n".join(aims.table(flags.work)))
    return 1 if failed else 0


def _run(part: ModuleType, flags: argparse.Namespace) -> bool:
    started = time.monotonic()
    try:
        result = part.measure(flags.work, flags, lambda line: print(line, flush=True))
    except Skip as reason:
        print(f"{part.NAME}: left out: {reason}", flush=True)
        return True
    except RuntimeError as error:
        print(f"{part.NAME}: failed: {error}", file=sys.stderr, flush=True)
        return False
    lines = part.table(result)
    (flags.work / f"{part.NAME}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    (flags.work / f"{part.NAME}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(["", *lines, "", f"{part.NAME}: {time.monotonic() - started:.0f} s", ""]), flush=True)
    return True


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        sys.exit(2)

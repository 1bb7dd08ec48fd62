"""Runs side by side: which configuration won, by how much, and is that more than chance?

python compare.py runs/A runs/B runs/C                           # a table; runs that differ in the seed are one
python compare.py runs/sweep/* --html sweep.html --lang zh       # one self-contained page with curves and samples
python compare.py runs/A runs/B --by time                        # the losses after the same training time
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common.command_line import Parser, amount, check_output_file, one_of, run_script, write_output_file
from common.console import spell_out, takes_any_character
from diagnosis.report.messages import LANGUAGES

AXES = ("tokens", "time", "step", "bytes")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; raise UserError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, finished or still training")
    add(
        "--by",
        type=one_of(*AXES),
        metavar="|".join(AXES),
        help="compare the losses at the most tokens, time, steps or bytes of text that all runs have reached (default: "
        "the best loss of each finished run)",
    )
    add(
        "--loss",
        type=amount,
        metavar="LOSS",
        help="say how soon each run reached this loss (default: one that all did)",
    )
    add("--json", metavar="FILE", help="write all figures to a file; - prints them instead of the table")
    add("--html", type=Path, metavar="FILE", help="write one self-contained page")
    add("--lang", default="en", type=one_of(*LANGUAGES), metavar="|".join(LANGUAGES), help="language (%(default)s)")
    args = parser.parse_args(argv)
    check_output_file("--json", None if args.json in (None, "-") else Path(args.json))
    check_output_file("--html", args.html)
    return args


def run(args: argparse.Namespace) -> None:
    """Compare the runs, and print or write what was found."""
    from experiments.comparison import compare
    from experiments.page import page
    from experiments.table import screen

    found = compare(args.runs, by=args.by, loss=args.loss, language=args.lang)
    to_stdout = args.json == "-"
    ascii_only = to_stdout and not takes_any_character(sys.stdout)
    as_json = json.dumps(found, ensure_ascii=ascii_only, allow_nan=False, indent=1) + "\n"
    if args.json and not to_stdout:
        write_output_file(Path(args.json), as_json)
    if args.html:
        write_output_file(args.html, page(found))
    print(spell_out(as_json if to_stdout else screen(found)), end="")


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C, 1 if the text could not be written."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""Has the model learned the language, or is it a parrot? And why?

python diagnose.py --checkpoint runs/NAME                                  # a run knows its own corpus
python diagnose.py --checkpoint runs/NAME --html report.html --lang zh
python diagnose.py --checkpoint runs/NAME --figures                        # minimal pairs, use of the context
python diagnose.py --checkpoint HUGGING_FACE_FOLDER --data text.jsonl --json -
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from common.command_line import Parser, check_output_file, run_script, write_output_file
from common.console import spell_out, takes_any_character
from common.errors import UserError
from diagnosis.report.messages import LANGUAGES


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags; raise UserError for a wrong one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a run, or of any Hugging Face causal language model")
    add(
        "--data",
        type=Path,
        help="a folder of prepare.py, or text in any format that it reads (default: the run's own corpus)",
    )
    add("--json", metavar="FILE", help="write all figures to a file; - prints them instead of the summary")
    add("--html", type=Path, metavar="FILE", help="write one self-contained page")
    add("--lang", default="en", help="en or zh (%(default)s)")
    add(
        "--figures", action="store_true", help="print minimal pairs and bits a byte by position and length, and no more"
    )
    add("--quick", action="store_true", help="skip the comparison of decoding settings")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    args = parser.parse_args(argv)
    if args.lang not in LANGUAGES:
        raise UserError(f"--lang is {args.lang}: give en or zh")
    if args.figures and args.html:
        raise UserError("--figures prints figures alone: leave --html out, whose page has them too, or --figures")
    check_output_file("--json", None if args.json in (None, "-") else Path(args.json))
    check_output_file("--html", args.html)
    return args


def run(args: argparse.Namespace) -> None:
    """Diagnose the model, and print or write what was found."""
    # imported here, so that wrong arguments are reported without waiting for torch
    from diagnosis.diagnosis import diagnose
    from diagnosis.report.html import page
    from diagnosis.report.messages import Messages
    from diagnosis.report.terminal import figures_screen, screen

    warnings.simplefilter("ignore")  # of the libraries, about themselves
    result = diagnose(
        args.checkpoint,
        data=args.data,
        language=args.lang,
        quick=args.quick,
        figures_alone=args.figures,
        device=args.device,
        show=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
    )
    show = figures_screen if args.figures else screen
    to_stdout = args.json == "-"
    ascii_only = to_stdout and not takes_any_character(sys.stdout)
    as_json = json.dumps(result, ensure_ascii=ascii_only, allow_nan=False, indent=1) + "\n"
    files = {args.json: as_json} if args.json and not to_stdout else {}
    if args.html:
        files[args.html] = page(result)
    # before anything is printed: a terminal that has gone away must not cost the files
    for path, text in files.items():
        write_output_file(Path(path), text)
    print(spell_out(as_json if to_stdout else show(result)), end="")
    for path in files:
        # with --json - nothing but the object may go to the standard output
        print(Messages(args.lang)("terminal.written", path=path), file=sys.stderr if to_stdout else sys.stdout)


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C, 1 if the text could not be written."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""Has it learned the language, or is it a parrot? And why?

python diagnose.py --checkpoint runs/NAME                                  # a run knows its own corpus
python diagnose.py --checkpoint runs/NAME --html report.html --lang zh
python diagnose.py --checkpoint HUGGING_FACE_FOLDER --data text.jsonl --json -
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from common.command_line import Parser, run_script
from common.errors import UserError

LANGUAGES = ("en", "zh")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="the folder of a run, or of any Hugging Face causal language model",
    )
    add(
        "--data",
        type=Path,
        help="text: a folder of prepare.py or a .jsonl[.gz|.zst] file; a run's own corpus if not given",
    )
    add("--json", metavar="FILE", help="write all figures there; - is the terminal, instead of the summary")
    add("--html", type=Path, metavar="FILE", help="write one self-contained page")
    add("--lang", default="en", help="en or zh (%(default)s)")
    add("--quick", action="store_true", help="leave the comparison of decoding settings out")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    args = parser.parse_args(argv)
    if args.lang not in LANGUAGES:
        raise UserError(f"--lang is {args.lang}: give en or zh")
    json_file = None if args.json in (None, "-") else Path(args.json)
    for flag, path in (("--json", json_file), ("--html", args.html)):
        if path is not None:
            _check_writable(flag, path)
    return args


def _check_writable(flag: str, path: Path) -> None:
    """Before minutes are spent: the folder must exist, and the file be none."""
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give a file in it")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.resolve().parent}: make it first")


def run(args: argparse.Namespace) -> None:
    # torch is imported once the arguments are known to be good
    from diagnosis.diagnosis import Request, diagnose
    from diagnosis.report.messages import Words
    from diagnosis.report.terminal import screen

    warnings.simplefilter("ignore")  # of the libraries, about themselves
    result = diagnose(
        Request(args.checkpoint, args.data, args.lang, args.quick, args.device),
        lambda text: print(f"... {text}", file=sys.stderr, flush=True),
    )
    if args.json == "-":
        print(_as_json(result))
    else:
        print(screen(result), end="")
    words = Words(args.lang)
    # with --json - nothing but the object may go to the standard output
    stream = sys.stderr if args.json == "-" else sys.stdout
    if args.json and args.json != "-":
        _write(Path(args.json), _as_json(result) + "\n")
        print(words("term_written", path=args.json), file=stream)
    if args.html:
        from diagnosis.report.html import page

        _write(args.html, page(result))
        print(words("term_written", path=args.html), file=stream)


def _as_json(result: dict) -> str:
    return json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another place") from None


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C, 1 if the text could not be written."""
    return run_script(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""Turn JSON Lines text into packed token shards with a tokenizer and a manifest.

    python prepare.py --input texts.jsonl more.jsonl.gz --output data/corpus
    python prepare.py --input texts.jsonl.zst --output data/corpus --tokenizer tokenizer.json --val_input val.jsonl
    python prepare.py --report data/corpus

Each line is an object {"text": ...}. The folder is what train.py takes as --data. --report shows
again what is in a folder that was made before; report.json there holds it for programs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from common.command_line import Parser, run_script
from common.errors import UserError
from corpus import report
from corpus.fingerprint import (
    DEDUP_CHOICES,
    DEFAULT_MAX_BAD_SHARE,
    DEFAULT_SHARD_TOKENS,
    DEFAULT_VAL_FRACTION,
    DEFAULT_VOCAB_SIZE,
    REPETITION_CHOICES,
)
from corpus.manifest import Manifest
from corpus.pipeline import prepare


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, metavar="FILE", help=".jsonl, .jsonl.gz or .jsonl.zst")
    add("--output", type=Path, metavar="DIR", help="folder to make or, if it is one, to replace")
    add("--report", type=Path, metavar="DIR", help="show the report of a folder made before, and do nothing else")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use; without it, one is trained")
    add("--vocab_size", type=int, default=DEFAULT_VOCAB_SIZE, help="entries of a trained tokenizer (%(default)s)")
    add("--dedup", choices=DEDUP_CHOICES, default="exact", help="drop documents that repeat others (%(default)s)")
    add(
        "--repetition",
        choices=REPETITION_CHOICES,
        default="drop",
        help="documents that repeat themselves (%(default)s)",
    )
    add("--val_fraction", type=float, metavar="F", help=f"share held out, by hash ({DEFAULT_VAL_FRACTION})")
    add("--val_input", nargs="+", type=Path, default=[], metavar="FILE", help="validation files, instead of a share")
    add("--workers", type=int, metavar="N", help="processes (all cores)")
    add("--max_bad_share", type=float, default=DEFAULT_MAX_BAD_SHARE, help="bad lines to put up with (%(default)s)")
    add("--shard_tokens", type=int, default=DEFAULT_SHARD_TOKENS, metavar="N", help="tokens a shard (%(default)s)")
    add("--html", type=Path, metavar="FILE", help="write the report as a page there, too")
    add("--lang", choices=("en", "zh"), default="en", help="language of that page (%(default)s)")
    options = parser.parse_args(arguments)
    if options.report and (options.input or options.output):
        parser.error("--report shows a folder made before; leave out --input and --output")
    missing = [flag for flag in ("input", "output") if not getattr(options, flag)]
    if missing and not options.report:
        parser.error(f"the following arguments are required: {', '.join(f'--{flag}' for flag in missing)}")
    if options.val_input and options.val_fraction:
        parser.error("--val_fraction and --val_input exclude each other; give one of them")
    if options.val_fraction is None:
        options.val_fraction = DEFAULT_VAL_FRACTION
    if options.html and (options.html.is_dir() or not options.html.absolute().parent.is_dir()):
        parser.error(f"--html {options.html} must be a file in a folder that exists")
    return options


def write_page(path: Path, found: dict[str, Any], heading: str, language: str) -> None:
    """The report as one HTML file; the corpus is there already, whatever becomes of it."""
    # Imported here: without --html, preparing needs no templates.
    from diagnosis.report.html import report_page

    try:
        path.write_text(report_page(found, language, heading), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path} cannot be written ({error.strerror}); the corpus itself is complete") from None


def run(options: argparse.Namespace) -> None:
    """Prepare, or look at what was prepared before, and print the report."""
    # A polite kill cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    manifest = (
        Manifest.read(options.report)
        if options.report
        else prepare(
            options.input,
            options.output,
            tokenizer=options.tokenizer,
            vocab_size=options.vocab_size,
            dedup=options.dedup,
            repetition=options.repetition,
            val_fraction=options.val_fraction,
            val_inputs=options.val_input,
            workers=options.workers,
            max_bad_share=options.max_bad_share,
            shard_tokens=options.shard_tokens,
        )
    )
    folder = options.report or options.output
    found = report.read(folder)
    if options.html:
        write_page(options.html, found, str(folder), options.lang)
    print("\n".join(report.lines(manifest, found)))


def main() -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C."""
    return run_script(lambda: run(parse_arguments()), interrupted=lambda: "interrupted; the output folder is as it was")


if __name__ == "__main__":
    sys.exit(main())

"""Turn text into packed token shards with a tokenizer and a manifest.

    python prepare.py --input texts.jsonl more.jsonl.gz --output data/corpus
    python prepare.py --input texts.jsonl.zst --output data/corpus --tokenizer tokenizer.json --val_input val.jsonl
    python prepare.py --report data/corpus

It reads JSON Lines ({"text": ...} a line), JSON, CSV, Parquet, Arrow and plain text, compressed or not. The folder is
what train.py takes as --data. --report shows again what is in a folder that was made before; report.json there holds it
for programs. After a kill the same command continues. Several processes or machines share the work with --part 1/4,
2/4, ..., each given twice (to read, then to pack); then the command without --part joins what they have done.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path

from common.command_line import Parser, check_output_file, run_script, write_output_file
from corpus.manifest import Manifest
from corpus.mixture import split_weights
from corpus.partial_folder import Part
from corpus.pipeline import prepare, prepare_part
from corpus.report import CorpusReport, lines
from corpus.settings import DEDUP_CHOICES, REPETITION_CHOICES, PreparationSettings


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the flags of PreparationSettings have its names and defaults."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, default = parser.add_argument, PreparationSettings()
    add(
        "--input",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files of text, folders, patterns; PATH:0.7 in a mixture",
    )
    add("--text_key", metavar="KEY", help='key or column of the text ("text", or the only one with text in it)')
    add("--text_template", metavar="TEXT", help='text made of several keys, such as "{title}\\n{content}"')
    add("--split_txt", action="store_true", help="take each stretch between blank lines of a .txt file as a document")
    add("--output", type=Path, metavar="DIR", help="folder to make or, if it is a prepared one, to replace")
    add("--report", type=Path, metavar="DIR", help="show the report of a folder made before, and do nothing else")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use; without it, one is trained")
    add("--vocab_size", type=int, metavar="N", help=f"entries of a trained tokenizer ({default.vocab_size})")
    add("--dedup", choices=DEDUP_CHOICES, help=f"drop documents that repeat others ({default.dedup})")
    add("--repetition", choices=REPETITION_CHOICES, help=f"documents that loop: drop or keep ({default.repetition})")
    add("--val_fraction", type=float, metavar="F", help=f"share held out for validation ({default.val_fraction})")
    add("--val_input", nargs="+", type=Path, metavar="FILE", dest="val_inputs", help="validation files themselves")
    add("--workers", type=int, metavar="N", help="processes (all cores)")
    add("--part", type=part, metavar="K/N", help="do the share of one of N processes or machines, from 1/N on")
    add("--max_bad_share", type=float, metavar="F", help=f"share of bad lines to accept ({default.max_bad_share})")
    add("--shard_tokens", type=int, metavar="N", help=f"tokens a shard ({default.shard_tokens})")
    add("--html", type=Path, metavar="FILE", help="write the report as a page there, too")
    add("--lang", choices=("en", "zh"), default="en", help="language of that page (%(default)s)")
    options = parser.parse_args(arguments)
    if options.report and (options.input or options.output):
        parser.error("--report shows a folder made before; leave out --input and --output")
    missing = [flag for flag in ("input", "output") if not getattr(options, flag)]
    if missing and not options.report:
        parser.error(f"the following arguments are required: {', '.join(f'--{flag}' for flag in missing)}")
    if options.val_inputs and options.val_fraction:
        parser.error("--val_fraction and --val_input exclude each other; give one of them")
    check_output_file("--html", options.html)
    return options


def part(text: str) -> Part:
    """Return the part that text such as "3/16" names."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no part: write 1/16 for the first of 16")
    return Part(int(match[1]), int(match[2]))


def write_page(path: Path, report: CorpusReport, heading: str, language: str) -> None:
    """Write the report as one HTML file; the corpus is there already, whatever becomes of it."""
    # Imported here: without --html, preparing needs no templates.
    from diagnosis.report.html import report_page

    write_output_file(path, report_page(report.model_dump(), language, heading))


def run(options: argparse.Namespace) -> None:
    """Prepare, or look at what was prepared before, and print the report."""
    # A polite kill cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.report:
        manifest = Manifest.read(options.report)
    else:
        options.input, options.weights = split_weights(options.input)
        given = {f.name: getattr(options, f.name) for f in fields(PreparationSettings)}
        settings = PreparationSettings(**{name: value for name, value in given.items() if value is not None})
        if options.part:
            print(prepare_part(options.input, options.output, settings, options.part, workers=options.workers))
            return
        manifest = prepare(options.input, options.output, settings, workers=options.workers)
    folder = options.report or options.output
    report = CorpusReport.read(folder)
    if options.html:
        write_page(options.html, report, str(folder), options.lang)
    print("\n".join(lines(manifest, report)))


def main() -> int:
    """Return the exit status: 0, 2 for wrong input, 130 after Ctrl-C."""
    return run_script(
        lambda: run(parse_arguments()),
        interrupted=lambda: "interrupted; the output folder is as it was, and the same command continues from here",
        output_is_the_work=False,
    )


if __name__ == "__main__":
    sys.exit(main())

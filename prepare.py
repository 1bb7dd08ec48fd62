"""Turn JSON Lines text into packed token shards with a tokenizer and a manifest.

    python prepare.py --input texts.jsonl more.jsonl.gz --output data/corpus
    python prepare.py --input texts.jsonl.zst --output data/corpus --tokenizer tokenizer.json --val_input val.jsonl

Each line is an object {"text": ...}. The folder is what train.py takes as --data.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from corpus import report
from corpus.errors import UserError
from corpus.fingerprint import (
    DEFAULT_MAX_BAD_SHARE,
    DEFAULT_SHARD_TOKENS,
    DEFAULT_VAL_FRACTION,
    DEFAULT_VOCAB_SIZE,
)
from corpus.pipeline import prepare


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, required=True, metavar="FILE", help=".jsonl, .jsonl.gz or .jsonl.zst")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to make or, if it is one, to replace")
    add("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use; without it, one is trained")
    add("--vocab_size", type=int, default=DEFAULT_VOCAB_SIZE, help="entries of a trained tokenizer (%(default)s)")
    add("--dedup", choices=("none", "exact"), default="exact", help="drop repeated documents (%(default)s)")
    add("--val_fraction", type=float, metavar="F", help=f"share held out, by hash ({DEFAULT_VAL_FRACTION})")
    add("--val_input", nargs="+", type=Path, default=[], metavar="FILE", help="validation files, instead of a share")
    add("--workers", type=int, metavar="N", help="processes (all cores)")
    add("--max_bad_share", type=float, default=DEFAULT_MAX_BAD_SHARE, help="bad lines to put up with (%(default)s)")
    add("--shard_tokens", type=int, default=DEFAULT_SHARD_TOKENS, metavar="N", help="tokens a shard (%(default)s)")
    options = parser.parse_args(arguments)
    if options.val_input and options.val_fraction:
        parser.error("--val_fraction and --val_input exclude each other; give one of them")
    if options.val_fraction is None:
        options.val_fraction = DEFAULT_VAL_FRACTION
    return options


def main() -> int:
    """Prepare and report; the exit status is 2 for bad input and 130 after Ctrl-C."""
    options = parse_arguments()
    # A polite kill cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        manifest = prepare(
            options.input,
            options.output,
            tokenizer=options.tokenizer,
            vocab_size=options.vocab_size,
            dedup=options.dedup,
            val_fraction=options.val_fraction,
            val_inputs=options.val_input,
            workers=options.workers,
            max_bad_share=options.max_bad_share,
            shard_tokens=options.shard_tokens,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options.output} is as it was", file=sys.stderr)
        return 130
    print("\n".join(report.lines(manifest, report.read(options.output))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

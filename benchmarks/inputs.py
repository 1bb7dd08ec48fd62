"""Converters for the flags of the benchmarks (`type=` of argparse, whose error names the flag), and `Skip`."""

from __future__ import annotations

import argparse
from pathlib import Path

from corpus.manifest import MANIFEST_NAME


class Skip(Exception):
    """Raised by a part that cannot run here; the message says what is missing and how to get it."""


def file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path.resolve()


def prepared(text: str) -> Path:
    """A folder that prepare.py has written."""
    path = Path(text)
    if not (path / MANIFEST_NAME).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no prepared corpus: write one with prepare.py --output {text}")
    return path.resolve()

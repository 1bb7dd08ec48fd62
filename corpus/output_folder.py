"""The output folder: filled beside its place, then renamed into it, so that a failed run changes nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from corpus.manifest import MANIFEST_NAME

_OWN_FILE = re.compile(r"(train|val)-\d{5,}\.(bin|mask)|(tokenizer|manifest|report|training_text)\.json")


def check_replaceable(folder: Path) -> None:
    """Raise UserError unless `folder` is absent, empty, or holds a prepared corpus and nothing else."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{folder}: is a file; give --output a folder") from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise UserError(f"{folder}: cannot be the output ({error}); give --output another folder") from None
    # A folder by the name of one of our files holds somebody's own, and would be deleted with all that is in it.
    foreign = [e.name for e in entries if not _OWN_FILE.fullmatch(e.name) or e.is_dir(follow_symlinks=False)]
    names = [e.name for e in entries]
    if foreign or (names and MANIFEST_NAME not in names):
        first = (foreign or names)[0]
        raise UserError(f"{folder}: holds other files ({first}); give --output a new or an empty folder")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill; at the end it takes the place of `folder`, on any error it vanishes."""
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a dead process with the same number
    partial.mkdir(parents=True)
    try:
        yield partial
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
        return
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)

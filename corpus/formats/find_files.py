"""The files that people mean by a path: the file, those in a folder or of a data set, those that fit a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

from common.errors import UserError
from common.files import listed, read_json
from corpus.formats.compression import SUFFIXES as COMPRESSED

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".zip")
PREPARED_MARK = "manifest.json"
_DATASET_MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")
_MOST_STATE_BYTES = 16 * 2**20
_NAMES_SHOWN = 5


def suffix_of(name: str) -> str:
    """Return the suffix that names the format, in lower case: ".jsonl" of "a.jsonl.gz"."""
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def has_wildcard(path: Path) -> bool:
    """Return whether a path is a pattern such as "news/*.parquet"."""
    return any(character in str(path) for character in "*?[")


def files_of(path: Path) -> list[Path]:
    """Return the files of a path; UserError if it stands for none.

    Those of a folder or pattern are in alphabetical order. A folder of Hugging Face `datasets` stands for its own,
    one with several splits for "train".
    """
    if path.is_dir():
        return _files_in(path)
    if path.exists() or path.is_symlink():
        return [path]
    if not has_wildcard(path):
        raise UserError(f"{path}: no such file")
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    files = [match for match in matches if match.is_file() and suffix_of(match.name) in TEXT_SUFFIXES]
    if not files:
        raise UserError(f"{path}: no file fits this pattern")
    return files


def _files_in(folder: Path) -> list[Path]:
    if (folder / PREPARED_MARK).is_file() and (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: is a prepared folder already; give it alone to train.py --data")
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if (entry / "state.json").is_file())
        if "train" not in splits:
            raise UserError(f"{folder}: holds the splits {', '.join(splits) or 'none'}; give the folder of one of them")
        return _files_in(folder / "train")
    if (folder / "state.json").is_file():
        return _dataset_files(folder)
    try:
        entries = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    visible = [e for e in entries if not any(part.startswith(".") for part in e.relative_to(folder).parts)]
    files = [e for e in visible if suffix_of(e.name) in TEXT_SUFFIXES and e.name not in _DATASET_MARKS]
    if not files:
        names = [entry.name for entry in visible]
        there = f"; it holds {listed(names, _NAMES_SHOWN, 40)}" if names else ", it is empty"
        raise UserError(f"{folder}: neither a prepared folder nor one with text ({', '.join(TEXT_SUFFIXES)}){there}")
    return files


def _dataset_files(folder: Path) -> list[Path]:
    """Return the files that `save_to_disk` wrote, in their order."""
    try:
        state = read_json(folder / "state.json", _MOST_STATE_BYTES)
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'}: not of a data set ({error}); save it again") from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: named in state.json and missing; copy the data set again")
    return files

"""What a run is called and configured with where no flag says it, and contradictions between its flags."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import UserError
from common.hardware import Device
from corpus.formats.compression import SUFFIXES as COMPRESSED
from corpus.formats.find_files import TEXT_SUFFIXES, has_wildcard
from corpus.manifest import MANIFEST_NAME
from corpus.mixture import split_weights
from training.config.command_line import Options

# What train.py takes beside text and not beside a prepared folder.
PREPARATION_FLAGS = ("tokenizer", "dedup", "repetition", "text_key", "text_template", "split_txt")
CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def default_config(device: Device, processes: int, *, from_base: bool = False) -> tuple[Path, str]:
    """Return the file of ds_configs/ that fits the machine, and why; `from_base`: to go on from a trained model."""
    ending = "_sft.json" if from_base else ".json"
    if device.kind == "cpu":
        return CONFIGS / f"cpu_x2{ending}", "no CUDA GPU here"
    name = "t4x2" if processes > 1 or device.count > 1 else "t4x1"
    return (
        CONFIGS / f"{name}{ending}",
        f"{processes} process{'es' if processes > 1 else ''} on {device.count} CUDA GPU(s)",
    )


def planned_processes(config: Path, processes: int) -> int:
    """Return how many processes to plan for without a launcher: `t4x1` is made for one, all others for two."""
    return processes if processes > 1 else 1 if "x1" in config.stem else 2


def data_name(options: Options) -> str:
    """Return what folders of this data are called."""
    if not options.data:
        return "sample"
    name = split_weights(options.data)[0][0].resolve().name
    for suffix in (*COMPRESSED, *TEXT_SUFFIXES):
        name = name.removesuffix(suffix)
    # Of a pattern, what can be part of a name
    return re.sub(r"[*?\[\]]+", "_", name)


def vocab_size(options: Options) -> int:
    """Return the vocabulary of a tokenizer trained here.

    The sample stories have 805 characters; with 6,400 entries names would become parts of longer tokens, and a model
    could not copy them.
    """
    return options.vocab_size or (6400 if options.data or options.plan_rows else 2000)


def is_prepared(path: Path) -> bool:
    """Return whether `path` is a folder made by prepare.py, and not text."""
    return (path / MANIFEST_NAME).exists()


def check_paths(options: Options, output: Path) -> None:
    """Raise UserError for flags that contradict each other or the files that they name."""
    if options.preflight and options.skip_preflight:
        raise UserError("--preflight checks the run and --skip_preflight leaves that out: give one of the two")
    for path in split_weights(options.data)[0]:
        if not path.exists() and not has_wildcard(path):
            raise UserError(f"--data {path}: there is no such file or folder")
    if any(is_prepared(path) for path in split_weights(options.data)[0]):
        _check_prepared(options, output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder")


def _check_prepared(options: Options, output: Path) -> None:
    """Check the flags that go with a folder made by prepare.py."""
    if any(path.resolve() == output.resolve() for path in options.data):
        raise UserError(f"--output {output} is the folder of the corpus: give the run another one, such as runs/NAME")
    for name in PREPARATION_FLAGS:
        if getattr(options, name):
            raise UserError(f"--{name} goes with text; a prepared folder was made with prepare.py --{name} or without")
    if len(options.data) > 1:
        raise UserError("--data takes one prepared folder, or text, not both")

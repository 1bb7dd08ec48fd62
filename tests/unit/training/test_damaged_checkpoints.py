"""Checkpoints spoiled in every way that a disk or a cut-off copy can: the one before is taken, with a warning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from training.checkpointing.checkpoint import choose


def _truncate(checkpoint: Path) -> None:
    file = _weights(checkpoint)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def _flip_weight(checkpoint: Path) -> None:
    flip(_weights(checkpoint), _weights(checkpoint).stat().st_size // 2 * 8 + 3)


def _flip_state(checkpoint: Path) -> None:
    text = (checkpoint / "run_state.json").read_bytes()
    flip(checkpoint / "run_state.json", (text.index(b'"step"') + len(b'"step": ')) * 8)


def _delete_file(checkpoint: Path) -> None:
    _weights(checkpoint).unlink()


def _delete_state(checkpoint: Path) -> None:
    (checkpoint / "run_state.json").unlink()


def _empty_folder(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def _zeros(checkpoint: Path) -> None:
    """What a file system may leave after a power cut: the right length, nothing in it."""
    _weights(checkpoint).write_bytes(bytes(_weights(checkpoint).stat().st_size))


def _delete_latest(checkpoint: Path) -> None:
    (checkpoint.parent / "latest").unlink()


def _garbage_latest(checkpoint: Path) -> None:
    (checkpoint.parent / "latest").write_bytes(bytes(range(256)))


def _stale_partial(checkpoint: Path) -> None:
    """Left by a run that was killed while it saved."""
    step = int(checkpoint.name.removeprefix("step-")) + 5
    shutil.copytree(checkpoint, checkpoint.with_name(f"step-{step:08d}.partial"))


# what is done to the newest checkpoint, and whether it can still be used
DAMAGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "the largest file truncated to a half": (_truncate, False),
    "one bit flipped in the largest file": (_flip_weight, False),
    "the largest file full of zeros": (_zeros, False),
    "one bit flipped in run_state.json": (_flip_state, False),
    "the largest file deleted": (_delete_file, False),
    "run_state.json deleted": (_delete_state, False),
    "an empty folder": (_empty_folder, False),
    "`latest` deleted": (_delete_latest, True),
    "garbage in `latest`": (_garbage_latest, True),
    "a stale .partial beside it": (_stale_partial, True),
}


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        value = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([value ^ (1 << bit % 8)]))


def _weights(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_it(finished_run, tmp_path, name):
    run, (spoil, usable) = tmp_path / "run", DAMAGES[name]
    shutil.copytree(finished_run, run)
    *_, before, newest = sorted((run / "checkpoints").glob("step-*"))
    spoil(newest)
    found, warnings = choose(run, "auto")
    assert found == (newest if usable else before)
    assert len(warnings) == (0 if usable else 1)
    assert usable or newest.name in warnings[0]

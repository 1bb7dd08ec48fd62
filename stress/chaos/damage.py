"""The newest checkpoint spoiled in every way that a disk or a cut-off copy can: the one before must be taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from stress.chaos import compare
from stress.chaos.record import Journal, Trial
from stress.chaos.session import CONTINUING
from stress.chaos.workplace import Workplace

CATEGORY = "damaged checkpoints"


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


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """Each damage on a copy of one run that has some steps left; it must end as the uninterrupted one does."""
    reference = work.reference()
    base = _unfinished(work, reference)
    for name, (spoil, usable) in DAMAGES.items():
        copy = work.copy(base, "damaged")
        whole = checkpoints(copy)
        spoil(whole[-1])
        session = work.finish(copy, "damaged")
        trial = Trial(CATEGORY, name, facts={"log": session.log.name})
        expected = whole[-1] if usable else whole[-2]
        _judge(trial, session.output, whole[-1], expected, warned=not usable)
        trial.expect(session.runner.returncode == 0, f"exit status {session.runner.returncode}")
        if session.runner.returncode == 0:
            trial.problems += compare.differences(copy, reference)
        journal.add(trial)


def _judge(trial: Trial, output: str, newest: Path, expected: Path, *, warned: bool) -> None:
    """It continued from the right one, and said which one it could not use."""
    found = CONTINUING.search(output)
    trial.expect(found, f"did not say that it continues:\n{output[-500:]}")
    if found:
        trial.steps_lost = _step(newest) - int(found[2].replace(",", ""))
        trial.expect(Path(found[1]).name == expected.name, f"continued from {found[1]}, not from {expected.name}")
    lines = [
        line
        for line in output.splitlines()
        if newest.name in line and not CONTINUING.search(line) and "saved" not in line
    ]
    trial.expect(bool(lines) or not warned, f"no line names {newest.name}")
    if lines and warned:
        trial.facts["said"] = lines[0].strip().replace(str(newest.parents[3]) + "/", "")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run_folder: Path) -> list[Path]:
    """Those with their final name, oldest first."""
    return sorted(path for path in (run_folder / "checkpoints").glob("step-*") if path.suffix != ".partial")


def _unfinished(work: Workplace, reference: Path) -> Path:
    """The uninterrupted run as it was before its last checkpoint."""
    base = work.copy(reference, "unfinished")
    *kept, last = checkpoints(base)
    shutil.rmtree(last)
    (base / "checkpoints" / "latest").write_text(kept[-1].name + "\n", encoding="utf-8")
    (base / "summary.json").unlink()
    return base

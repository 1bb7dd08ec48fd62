"""A file system that is full, at the start, during a save, and to the last byte. Needs the right to mount a tmpfs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from stress.chaos import compare
from stress.chaos.damage import checkpoints
from stress.chaos.record import Journal, Trial
from stress.chaos.session import STEP_LINE
from stress.chaos.workplace import Workplace

CATEGORY = "full disk"
MIB = 2**20
ROOM = 400 * MIB


def run(work: Workplace, journal: Journal, trials: int) -> None:
    """The run lies on a tmpfs that a file of ours fills and leaves again."""
    reference = work.reference()
    if os.geteuid() != 0:
        print(f"left out, {CATEGORY}: only root mounts a tmpfs; `unshare -rm` makes you one for this command")
        return
    size = sum(path.stat().st_size for path in checkpoints(reference)[-1].iterdir())
    for left, name in (
        (size // 8, "too little room for a checkpoint, for 20 steps"),
        (0, "not a byte free, for 20 steps"),
    ):
        with _tmpfs(work.folder / "disk") as disk:
            _filled(work, journal, disk, reference, left, name)
    with _tmpfs(work.folder / "disk") as disk:
        _too_small(work, journal, disk, size)


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(disk: Path, leave: int) -> Path:
    """Write a file that leaves `leave` bytes free; returns it."""
    ballast, block = disk / "ballast", bytes(64 * 1024)
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := _free(disk)) > leave:
            file.write(block[: min(len(block), max(1, free - leave))])
    return ballast


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def _filled(work: Workplace, journal: Journal, disk: Path, reference: Path, leave: int, name: str) -> None:
    """Full from step 12 on, room again at step 32 or when the run has given up; started again if it did."""
    trial, run_folder = Trial(CATEGORY, name), disk / "run"
    with work.session(work.flags(run_folder), "disk") as session:
        trial.facts["log"] = session.log.name
        session.wait_until(lambda: compare.last_step(run_folder) >= 12)
        before = {path.name for path in checkpoints(run_folder)}
        ballast = fill(disk, leave)
        session.wait_until(lambda: _said_step(session.output) >= 32, limit=60)
        after = {path.name for path in checkpoints(run_folder)}
        trial.expect(before <= after or len(after) >= len(before), f"checkpoints {before} became {after}")
        trial.expect(not session.ended or not leave, f"it gave up: {session.output[-300:]}")
        ballast.unlink()
        status = session.wait_end()
        told = [line.strip() for line in session.said if "no space" in line.lower()]
        trial.expect(told, "no line speaks of the disk")
        trial.facts |= {"exit status": status, "said": told[0][:240] if told else None}
        trial.expect(not session.traceback, "a traceback on the terminal")
    if status != 0:
        started = time.monotonic()
        session = work.finish(run_folder, "disk-again")
        trial.facts["started again after"] = round(time.monotonic() - started)
        trial.expect(session.runner.returncode == 0, f"again: {session.runner.returncode}: {session.output[-300:]}")
    if session.runner.returncode == 0:
        trial.problems += compare.differences(run_folder, reference)
    journal.add(trial)


def _said_step(output: str) -> int:
    steps = STEP_LINE.findall(output)
    return int(steps[-1].replace(",", "")) if steps else 0


def _too_small(work: Workplace, journal: Journal, disk: Path, size: int) -> None:
    """Less room than one checkpoint from the start: said before the first step."""
    trial = Trial(CATEGORY, "less room than one checkpoint at the start")
    fill(disk, size // 2)
    with work.session(work.flags(disk / "run"), "disk-small") as session:
        session.wait_until(lambda: STEP_LINE.search(session.output))
        told = [line.strip() for line in session.said if "space" in line and not line.startswith("step ")]
        trial.expect(told, "no line speaks of the space before the first step")
        trial.facts = {
            "log": session.log.name,
            "exit status": session.runner.poll(),
            "said": told[0][:240] if told else None,
        }
        trial.expect(not session.traceback, "a traceback on the terminal")
    journal.add(trial)

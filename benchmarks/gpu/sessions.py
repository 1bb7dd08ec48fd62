"""Sessions of train.py in processes of their own, each under a time limit: a crash or a hang ends none but itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.gpu.watched import SIGNALLED, Watch
from training.processes.network import free_port

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
_GRACE = 10.0  # seconds for the other ranks once one has failed, and for a process that is asked to end
_TOTAL = re.compile(r"(?:fits|does NOT fit): ([\d.]+) ([GM]iB)")


@dataclass(frozen=True)
class Session:
    """What came of a session of train.py; its run is in `folder`/run."""

    folder: Path
    statuses: list[int | None]
    """Of the ranks; None for one that had not ended in time."""
    seconds: float

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @cached_property
    def figures(self) -> list[dict[str, Any]]:
        """What `watched` wrote, without the ranks that failed."""
        files = (self.folder / f"rank{rank}.json" for rank in range(len(self.statuses)))
        return [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]

    @property
    def said(self) -> str:
        """All that the first rank printed."""
        return (self.folder / "rank0.txt").read_text(encoding="utf-8", errors="replace")

    @property
    def seconds_after_signal(self) -> float:
        """From a signal to the first rank until its last figures were written."""
        signalled = (self.folder / "rank0").with_suffix(SIGNALLED).read_text(encoding="ascii")
        return (self.folder / "rank0.json").stat().st_mtime - float(signalled)

    def most(self, name: str) -> float:
        """Return the largest figure of any rank in GiB; 0 if there is none."""
        return max((rank[name] for rank in self.figures), default=0) / GIB

    @property
    def problem(self) -> str:
        """Why a session that should have ended with status 0 did not; empty if it did."""
        failed = next((rank for rank, status in enumerate(self.statuses) if status), None)
        if failed is None:
            return f"did not end in {self.seconds:.0f} s" if None in self.statuses else ""
        lines = (self.folder / f"rank{failed}.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"status {self.statuses[failed]}: {lines[-1][:200] if lines else 'without a word'}"


def session(folder: Path, processes: int, flags: Sequence[object], watch: Watch, limit: float) -> Session:
    """Run train.py with `flags` in so many processes, which are ended after `limit` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    started, port, ranks = time.monotonic(), free_port(), []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        figures = folder / f"rank{rank}.json"
        figures.unlink(missing_ok=True)
        words = ["-m", "benchmarks.gpu.watched", figures, json.dumps(asdict(watch)), *flags, "--output", folder / "run"]
        ranks.append(start(words, folder / f"rank{rank}.txt", place))
    late = wait(ranks, limit)
    statuses = [None if process in late else process.returncode for process in ranks]
    return Session(folder, statuses, time.monotonic() - started)


def start(
    words: Sequence[object], log: Path, environment: Mapping[str, object] | None = None
) -> subprocess.Popen[bytes]:
    """Start this Python with `words` in the project's folder; what it says goes to `log`."""
    added = {name: str(value) for name, value in (environment or {}).items()}
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"} | added,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait(processes: Sequence[subprocess.Popen[bytes]], limit: float) -> list[subprocess.Popen[bytes]]:
    """Wait until all have ended; end those left after `limit` seconds, or soon after one has failed; return these."""
    deadline = time.monotonic() + limit
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + _GRACE)
            time.sleep(0.1)
    finally:
        late = [process for process in processes if process.poll() is None]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + _GRACE
            while any(process.poll() is None for process in late) and time.monotonic() < deadline:
                time.sleep(0.1)
    return late


def planned_gib(output: str) -> float:
    """Return the GiB that `--plan` has printed, those of the CUDA context and the allocator included; nan if none."""
    found = _TOTAL.search(output)
    return float(found[1]) / (1 if found[2] == "GiB" else 1024) if found else float("nan")

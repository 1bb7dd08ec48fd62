"""The runs of a sweep, one after the other, each by the ordinary command; a sweep that was killed goes on.

`sweep.json` in the sweep's folder says what became of each run. What the run's own folder says counts more: a run may
have finished after the sweep was killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common.console import human_time
from common.errors import UserError
from common.files import read_object, replace_bytes
from evaluation.run_record import is_run
from experiments.run_figures import SWEEP_RECORD, ComparedRun, Point, is_training, read_runs
from experiments.sweep_plan import PlannedRun
from training.processes.network import free_port

ENDED = ("finished", "diverged")  # by what the run itself says
DONE = (*ENDED, "failed", "behind")
EARLY, IN_A_ROW = 0.2, 2  # of the way of the finished runs, and evaluations, before a run is given up
POLL = 0.5  # seconds
SAVING = 600.0  # seconds that a run may take to finish its step and save after it was asked to stop
TRAIN = Path(__file__).resolve().parents[1] / "train.py"
Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepSettings:
    """What all runs of a sweep share. `arguments` are those of train.py."""

    folder: Path
    arguments: tuple[str, ...]
    processes: int
    budget: float | None = None
    """Seconds for all runs and sessions of the sweep together."""
    stop_losers: float | None = None
    """The share by which a run may be behind; see `is_behind`."""


class Sweep:
    """The state of a sweep, in memory and in `sweep.json`."""

    def __init__(self, settings: SweepSettings, runs: Sequence[PlannedRun], say: Say) -> None:
        self.settings, self.runs, self.say = settings, list(runs), say
        self.path = settings.folder / SWEEP_RECORD
        before = read_object(self.path)
        arguments = list(settings.arguments)
        if before.get("arguments", arguments) != arguments:
            then = " ".join(map(str, before["arguments"]))
            raise UserError(
                f"{settings.folder} was begun with other flags for train.py ({then}): give those, or another --output"
            )
        self.states: dict[str, dict[str, Any]] = before.get("runs") or {}
        for run in runs:
            known = self._entry(run).get("set")
            if known is not None and known != list(run.overrides):
                raise UserError(
                    f"{settings.folder / run.name} was made with --set {' '.join(known)}, and not with "
                    f"{' '.join(run.overrides)}: give another --output"
                )

    def place(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.settings.folder / run.name

    def command(self, run: PlannedRun) -> list[str]:
        """Return the ordinary command of a run; the same one continues it."""
        count = self.settings.processes
        beside = Path(sys.executable).with_name("deepspeed")
        program = str(beside if beside.is_file() else "deepspeed")
        # not the usual port, which another run on this machine may have
        launcher = [program, "--num_gpus", str(count), "--master_port", str(free_port())]
        start = [sys.executable] if count == 1 else launcher
        return [*start, str(TRAIN), *self.train_arguments(run)]

    def train_arguments(self, run: PlannedRun) -> list[str]:
        """Return what train.py gets."""
        changes = ["--set", *run.overrides] if run.overrides else []
        return [*self.settings.arguments, *changes, "--seed", str(run.seed), "--output", str(self.place(run))]

    # --- doing it -----------------------------------------------------------------------------------------------------

    def finish(self) -> str | None:
        """Do all runs that are not done; return why the sweep ended before that, if it did."""
        for number, run in enumerate(self.runs, 1):
            self._wait_for_orphan(run)
            heading = f"[{number}/{len(self.runs)}] {run.name}"
            if self._is_settled(run):
                self.say(f"{heading}: {self.describe(run)} before")
                continue
            if self._seconds_left() > 0:
                self.say(heading)
                self._do(run)
            if self.state(run) not in DONE and self._seconds_left() <= 0:
                return f"--budget is used up ({human_time(self.settings.budget or 0)})"
            self.say(f"    {self.describe(run)}")
        return None

    def _is_settled(self, run: PlannedRun) -> bool:
        """Return whether a run is done, by its own folder or by the record."""
        found = self.figures(run)
        if found and found.state in ENDED:
            self._note(run, state=found.state)
        return self.state(run) in DONE

    def _do(self, run: PlannedRun) -> None:
        started, before = time.monotonic(), self._entry(run).get("seconds", 0.0)
        log = self.settings.folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        asked = behind = False
        with log.open("ab") as output:
            # a session of its own: Ctrl-C reaches this process alone, which then asks all processes of the run to stop
            process = subprocess.Popen(
                self.command(run), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            self._note(run, state="running", pid=process.pid)
            try:
                while process.poll() is None and self._seconds_left(running=time.monotonic() - started) > 0:
                    if behind := self._is_behind(run):
                        break
                    time.sleep(POLL)
            finally:
                if asked := process.poll() is None:
                    self._note(run, state="interrupted")
                    _ask_to_stop(process)
                status = process.wait()
                self._note(run, pid=None, seconds=round(before + time.monotonic() - started, 1))
        found = self.figures(run)
        if found and found.state in ENDED:  # one that was asked to stop may have finished
            self._note(run, state=found.state, status=status)
        elif status and not asked:
            self._note(run, state="failed", status=status, error=_last_words(log))
        else:
            self._note(run, state="behind" if behind else "interrupted", status=status)

    def _wait_for_orphan(self, run: PlannedRun) -> None:
        """Wait for a run that outlived a killed sweep: it is training in that folder, and nothing of it is lost."""
        if self._has_orphan(run):
            self.say(f"{run.name} is still training, started by an earlier session: waiting for it")
            while self._has_orphan(run):
                time.sleep(POLL)

    def _has_orphan(self, run: PlannedRun) -> bool:
        """Return whether a process trains there, or is just starting and does not hold the run's lock yet."""
        pid = self._entry(run).get("pid")
        try:
            starting = isinstance(pid, int) and str(self.place(run)) in psutil.Process(pid).cmdline()
        except psutil.Error:
            starting = False
        return starting or is_training(self.place(run))

    def _is_behind(self, run: PlannedRun) -> bool:
        share = self.settings.stop_losers
        if share is None or (found := self.figures(run)) is None:
            return False
        others = [self.figures(other) for other in self.runs if other.name != run.name]
        finished = [other.curve("tokens", as_bits=True) for other in others if other and other.state == "finished"]
        return is_behind(found.curve("tokens", as_bits=True), finished, share)

    def _seconds_left(self, running: float = 0.0) -> float:
        if self.settings.budget is None:
            return float("inf")
        used = sum(state.get("seconds", 0.0) for state in self.states.values())
        return self.settings.budget - used - running

    # --- what became of it --------------------------------------------------------------------------------------------

    def figures(self, run: PlannedRun) -> ComparedRun | None:
        """Return what the run's folder holds, None if there is nothing yet."""
        try:
            return read_runs([self.place(run)])[0] if is_run(self.place(run)) else None
        except UserError:  # its first file is being written
            return None

    def describe(self, run: PlannedRun) -> str:
        """Return what became of a run in words."""
        entry, found, words = self._entry(run), self.figures(run), self.state(run)
        if words == "failed":
            return f"failed (status {entry.get('status')}): {entry.get('error')}; the log is logs/{run.name}.log"
        return words if found is None or found.best is None else f"{words}, best validation loss {found.best:.4f}"

    def forget(self, state: str) -> None:
        """Have the runs in this state done again; what a run has saved is continued."""
        for run in self.runs:
            if self.state(run) == state:
                self._note(run, state="interrupted")

    def counts(self) -> Counter[str]:
        """Return how many of the runs are in which state."""
        return Counter(map(self.state, self.runs))

    def state(self, run: PlannedRun) -> str:
        """Return what the record says: one of DONE, running, interrupted, waiting."""
        return self._entry(run).get("state", "waiting")

    def _entry(self, run: PlannedRun) -> dict[str, Any]:
        return self.states.get(run.name, {})

    def _note(self, run: PlannedRun, **what: Any) -> None:
        entry = self.states.setdefault(run.name, {"set": list(run.overrides), "seed": run.seed})
        entry.update(what)
        record = {
            "arguments": list(self.settings.arguments),
            "processes": self.settings.processes,
            "runs": self.states,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        replace_bytes(self.path, [text.encode()])


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Send Ctrl-C to the launcher and all its processes, as a terminal would; a run then saves and ends."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=SAVING)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _last_words(log: Path) -> str:
    """Return what train.py said last of an error, or else the last line: the launcher has more to say after it."""
    try:
        text = log.read_bytes()[-65536:].decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip()[:300] for line in text.split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("train.py: ")]
    return (errors or lines or [""])[-1]


def is_behind(curve: Sequence[Point], finished: Sequence[Sequence[Point]], share: float) -> bool:
    """Return whether a run is given up because it is far behind; curves are (tokens, validation loss).

    The rule: at two evaluations in a row, later than EARLY of the way of the finished runs, its loss is more than
    `share` above that of the best finished run at the same tokens. A learning rate that starts slowly and ends well is
    the price of any such rule; the share says how much of it is paid.
    """
    references = [reference for reference in finished if len(reference) > 1]
    if not references or len(curve) < IN_A_ROW:
        return False
    start = EARLY * max(reference[-1][0] for reference in references)
    for tokens, loss in curve[-IN_A_ROW:]:
        best = _best_at(tokens, references)
        if tokens < start or best is None or loss <= (1 + share) * best:
            return False
    return True


def _best_at(tokens: float, references: Sequence[Sequence[Point]]) -> float | None:
    """Return the lowest loss of the references that have come as far."""
    found = [
        float(np.interp(tokens, [x for x, _ in reference], [loss for _, loss in reference]))
        for reference in references
        if reference[-1][0] >= tokens
    ]
    return min(found, default=None)

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from common.console import human_time
from common.errors import UserError
from common.files import read_object, replace_bytes
from evaluation.run_record import is_run
from experiments.losers import is_behind
from experiments.run_figures import ComparedRun, is_training, read_runs
from experiments.sweep_plan import PlannedRun

RECORD = "sweep.json"
DONE = ("finished", "diverged", "failed", "behind")
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
    """The share by which a run may be behind; see experiments/losers.py."""


class Sweep:
    """The state of a sweep, in memory and in `sweep.json`."""

    def __init__(self, settings: SweepSettings, runs: Sequence[PlannedRun], say: Say) -> None:
        self.settings, self.runs, self.say = settings, list(runs), say
        self.path = settings.folder / RECORD
        before = read_object(self.path)
        arguments = list(settings.arguments)
        if before.get("arguments", arguments) != arguments:
            then = " ".join(map(str, before["arguments"]))
            raise UserError(
                f"{settings.folder} was begun with other flags for train.py ({then}): give those, or another --output"
            )
        self.states: dict[str, dict[str, Any]] = before.get("runs") or {}
        for run in runs:
            known = self.states.get(run.name, {}).get("set")
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
        launcher = [str(beside if beside.is_file() else "deepspeed"), "--num_gpus", str(count)]
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
            if (state := self._settled(run)) is None:
                if self._seconds_left() <= 0:
                    return f"--budget is used up ({human_time(self.settings.budget or 0)})"
                self.say(f"[{number}/{len(self.runs)}] {run.name}")
                state = self._do(run)
                if state == "out of time":
                    return f"--budget is used up ({human_time(self.settings.budget or 0)})"
                self.say(f"    {self.describe(run)}")
            else:
                self.say(f"[{number}/{len(self.runs)}] {run.name}: {self.describe(run)} before")
        return None

    def _settled(self, run: PlannedRun) -> str | None:
        """Return what became of a run that is done, by its own folder or by the record; None if it is to be done."""
        found = self.figures(run)
        state = found.state if found else None
        if state in ("finished", "diverged"):
            self._note(run, state=state)
            return state
        recorded = self.states.get(run.name, {}).get("state")
        return recorded if recorded in DONE else None

    def _do(self, run: PlannedRun) -> str:
        started = time.monotonic()
        before = self.states.get(run.name, {}).get("seconds", 0.0)
        log = self.settings.folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        ended, status = "", None
        with log.open("ab") as output:
            # a session of its own: Ctrl-C reaches this process alone, which then asks all processes of the run to stop
            process = subprocess.Popen(
                self.command(run), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            self._note(run, state="running", pid=process.pid)
            try:
                while (status := process.poll()) is None:
                    if self._is_behind(run):
                        ended = "behind"
                    elif self._seconds_left(running=time.monotonic() - started) <= 0:
                        ended = "out of time"
                    if ended:
                        break
                    time.sleep(POLL)
            finally:
                if process.poll() is None:
                    self._note(run, state="interrupted")
                    _ask_to_stop(process)
                    status = process.wait()
                self._note(run, pid=None, seconds=round(before + time.monotonic() - started, 1))
        state = self._outcome(run, ended, status)
        self._note(
            run,
            state="interrupted" if state == "out of time" else state,
            status=status,
            **({"error": _last_line(log)} if state == "failed" else {}),
        )
        return state

    def _outcome(self, run: PlannedRun, ended: str, status: int | None) -> str:
        """Return what became of a run whose process has ended: one that was asked to stop may have finished."""
        found = self.figures(run)
        if found and found.state in ("finished", "diverged"):
            return found.state
        if ended == "out of time":
            return ended
        return ended or ("interrupted" if status == 0 else "failed")

    def _wait_for_orphan(self, run: PlannedRun) -> None:
        """Wait for a run that outlived a killed sweep: it is training in that folder, and nothing of it is lost."""
        if self._has_orphan(run):
            self.say(f"{run.name} is still training, started by an earlier session: waiting for it")
            while self._has_orphan(run):
                time.sleep(POLL)

    def _has_orphan(self, run: PlannedRun) -> bool:
        """Return whether a process trains there, or is just starting and does not hold the run's lock yet."""
        pid = self.states.get(run.name, {}).get("pid")
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
        state, found = self.states.get(run.name, {}), self.figures(run)
        words = str(state.get("state"))
        if found and found.best is not None and words != "failed":
            words += f", best validation loss {found.best:.4f}"
        if words == "failed":
            words += f" (status {state.get('status')}): {state.get('error')}; the log is logs/{run.name}.log"
        return words

    def forget(self, state: str) -> None:
        """Have the runs in this state done again; what a run has saved is continued."""
        for run in self.runs:
            if self.states.get(run.name, {}).get("state") == state:
                self._note(run, state="interrupted")

    def counts(self) -> dict[str, int]:
        """Return how many of the runs are in which state."""
        found: dict[str, int] = {}
        for run in self.runs:
            state = self.states.get(run.name, {}).get("state", "waiting")
            found[state] = found.get(state, 0) + 1
        return found

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


def _last_line(log: Path) -> str:
    """Return what the run said last."""
    try:
        lines = log.read_bytes()[-4096:].decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

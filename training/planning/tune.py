"""`--tune`: measure on the machine at hand what no table knows, and write the fastest configuration as a file.

The global batch stays what it is, so that no trial changes what is learned (but for the balancing loss, which is
computed a micro-batch). `Tuner` decides which trials to take; tune_trial.py takes one.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import replace_bytes
from training.config.command_line import Options
from training.config.resolve import Draft
from training.config.settings import ACCUMULATION, BATCH, MICRO
from training.planning.micro_batch import CLOSE, Memory, divisors
from training.planning.tune_trial import Measured, Work, run_trial

_GIB = 2**30
_STAGE, _OVERLAP = "zero_optimization.stage", "zero_optimization.overlap_comm"
_FIRST_TIMEOUT = 300.0  # seconds of a trial at most, before it is known how long one takes
_SLOWER = 3.0  # a trial may take so many times as long as the longest so far
_BETTER = 1.02  # times the tokens a second: less may be noise
_WORSE = 0.97  # a direction in which it gets slower than this is not followed
_CONFIRMATIONS = 2  # times that the first and the best are measured again
_WITH_CONFIRMATION = 1 + 2 * _CONFIRMATIONS  # trials: another one, and these
# Of the memory: up to where the plan's estimate lets a trial start. A GPU's failing is harmless; a host's is not.
_MOST_PLANNED = {"cuda": 1.3, "cpu": CLOSE}


@dataclass
class Trial:
    """A changed configuration, what the plan says of it, and what was measured: the mean of its tries."""

    changes: dict[str, Any]
    """Dotted keys, with other values than the configuration as it is has."""
    settings: Draft
    planned_bytes: int
    tokens_per_second: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    problem: str = ""

    @property
    def speed(self) -> float:
        """Tokens a second; 0 where it failed."""
        return sum(self.tokens_per_second) / len(self.tokens_per_second) if self.tokens_per_second else 0.0

    @property
    def choices(self) -> dict[str, Any]:
        """The values of what a trial may change."""
        overlapped = self.settings.at(_OVERLAP) or False
        return {
            "micro_batch": self.settings.micro_batch,
            "zero_stage": self.settings.zero_stage,
            "overlap_comm": overlapped,
        }


@dataclass
class Tuner:
    """A session of trials on this machine.

    `check` completes a changed DeepSpeed JSON, or raises UserError for one that cannot be; `try_out` is `run_trial`.
    """

    ds_config: dict[str, Any]
    check: Callable[[dict[str, Any]], Draft]
    memory: Memory
    corpus: Path
    options: Options
    say: Callable[[str], None]
    try_out: Callable[[Work, int, float], Measured] = run_trial
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started, self.seconds = time.monotonic(), 60 * (self.options.tune or 0.0)
        self._longest = 0.0  # seconds of a trial so far
        self.draft = self.check(self.ds_config)
        self.rows = self.draft.micro_batch * self.draft.accumulation

    def run(self) -> Trial | None:
        """Try the configuration as it is, then one change after the other; return the best, None if none ran."""
        best = self._other_micro_batches(self._try({}))
        for change in self._other_settings(best.settings):
            best = self._better(best, self._try(best.changes | change))
        return self._confirmed(best) if best.speed else None

    # --- which trials -------------------------------------------------------------------------------------------------

    def _other_micro_batches(self, best: Trial) -> Trial:
        """Double the micro-batch as long as that is no slower; if it never was faster, halve it."""
        for larger in (True, False) if best.speed else (False,):
            before, size = best, self.draft.micro_batch
            while size := self._next_size(size, larger=larger):
                trial = self._try({MICRO: size, ACCUMULATION: self.rows // size})
                stop = trial.speed < _WORSE * best.speed
                best = self._better(best, trial)
                if stop or self._late(_WITH_CONFIRMATION):
                    break
            if best is not before:
                break
        return best

    def _next_size(self, size: int, *, larger: bool) -> int | None:
        """Return the nearest micro-batch that is at least twice `size`, or at most half of it."""
        sizes = divisors(self.rows)
        if larger:
            return next((other for other in sizes if other >= 2 * size), None)
        return next((other for other in reversed(sizes) if 2 * other <= size), None)

    def _other_settings(self, settings: Draft) -> list[dict[str, Any]]:
        """Return the single changes worth a trial beside the micro-batch."""
        if self.memory.processes == 1 or settings.zero_stage not in (1, 2):
            return []
        changes: list[dict[str, Any]] = [{_STAGE: 3 - settings.zero_stage}]
        if self.memory.model.ep_size == 1:  # with experts on several ranks, two communicators would be at work at once
            changes.append({_OVERLAP: not settings.at(_OVERLAP)})
        return changes

    @staticmethod
    def _better(best: Trial, other: Trial) -> Trial:
        return other if other.speed > best.speed * (_BETTER if best.speed else 1) else best

    def _confirmed(self, best: Trial) -> Trial:
        """Measure the best and the first again, in turn; the first stays unless every try of the best beats it."""
        first = self.trials[0]
        if best is first:
            return first
        for trial in (first, best) * _CONFIRMATIONS:
            if not self._late(1):
                self._measure(trial)
        surely = not first.speed or min(best.tokens_per_second) > max(first.tokens_per_second)
        return self._better(first, best) if surely else first

    # --- one trial ----------------------------------------------------------------------------------------------------

    def _late(self, trials: int) -> bool:
        """Return whether so many more trials, as long as the longest so far, would go over the time."""
        return time.monotonic() - self.started + trials * self._longest > self.seconds

    def _try(self, changes: dict[str, Any]) -> Trial:
        settings = self.check(self.changed(changes))
        planned, available = self.memory.needed(settings), self.memory.available
        trial = Trial(changes, settings, planned)
        if self.trials and self._late(_WITH_CONFIRMATION):
            trial.problem = "no time left"
            return trial
        self.trials.append(trial)
        if planned > _MOST_PLANNED[self.memory.device.kind] * available:
            trial.problem = f"not tried: --plan estimates {planned / _GIB:.1f} of {available / _GIB:.1f} GiB"
            self.say(self._line(trial))
        else:
            self._measure(trial)
        return trial

    def _measure(self, trial: Trial) -> None:
        resolved = trial.settings.unscheduled()
        work = Work(self.options, self.memory.model, resolved, self.corpus.resolve())
        started = time.monotonic()
        timeout = _FIRST_TIMEOUT if self._longest == 0 else _SLOWER * self._longest + 60
        measured = self.try_out(work, self.memory.processes, timeout)
        self._longest = max(self._longest, time.monotonic() - started)
        trial.problem = measured.problem
        if not measured.problem:
            trial.tokens_per_second.append(resolved.train_batch * self.memory.seq_len / measured.step_seconds)
            trial.peak_bytes = max(trial.peak_bytes, measured.peak_bytes)
        self.say(self._line(trial))

    def changed(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Return the DeepSpeed JSON with the changes, complete but for the "auto" values of a run."""
        config = copy.deepcopy(self.ds_config)
        sizes = {BATCH: self.draft.train_batch, MICRO: self.draft.micro_batch, ACCUMULATION: self.draft.accumulation}
        for path, value in (sizes | changes).items():
            block, _, key = path.rpartition(".")
            (config.setdefault(block, {}) if block else config)[key] = value
        return config

    # --- what it says -------------------------------------------------------------------------------------------------

    def _line(self, trial: Trial, *, mean: bool = False) -> str:
        settings = trial.settings
        overlap = ", overlapped" if settings.at(_OVERLAP) else ""
        rows = f"{settings.micro_batch} rows x {settings.accumulation}"
        what = f"  {f'{rows}, ZeRO-{settings.zero_stage}{overlap}':<40}"
        if not trial.speed:
            return f"{what} {trial.problem}"
        latest = trial.speed if mean else trial.tokens_per_second[-1]
        where = "of a GPU" if self.memory.device.kind == "cuda" else "of all processes"
        return f"{what} {latest:>10,.0f} tokens/s  {trial.peak_bytes / _GIB:.2f} GiB {where}"

    def table(self, best: Trial) -> list[str]:
        """Return the trials, fastest first."""
        first = self.trials[0].speed
        lines = ["tune: fastest first, beside the first; * is chosen"]
        for trial in sorted(self.trials, key=lambda trial: -trial.speed):
            mark = "*" if trial is best else " "
            ratio = f"x {trial.speed / first:.2f}" if first and trial.speed else ""
            lines.append(f"{mark}{self._line(trial, mean=True)[1:]}  {ratio}".rstrip())
        return lines

    def report(self, best: Trial | None) -> dict[str, Any]:
        """Return what tune.json holds."""
        return {
            "machine": self.memory.device.summary,
            "processes": self.memory.processes,
            "train_batch_size": self.draft.train_batch,
            "seconds": round(time.monotonic() - self.started, 1),
            "trials": [
                trial.choices
                | {
                    "gradient_accumulation_steps": trial.settings.accumulation,
                    "tokens_per_second": round(trial.speed, 1) or None,
                    "tries": [round(speed, 1) for speed in trial.tokens_per_second],
                    "peak_gib": round(trial.peak_bytes / _GIB, 3) or None,
                    "planned_gib_a_process": round(trial.planned_bytes / _GIB, 3),
                    "problem": trial.problem or None,
                }
                for trial in self.trials
            ],
            "best": best and best.choices,
            "changes": best and best.changes,
        }


def tune(tuner: Tuner, began_with: Path, output: Path, configs: Path) -> int:
    """Run the trials, write OUTPUT/tune.json and the winner as CONFIGS/tuned-NAME.json; return the exit status.

    `began_with` is the file of the configuration; 1 means that no trial at all could be measured.
    """
    shown = os.path.relpath(output / "tune.json")
    batch = tuner.draft.train_batch
    tuner.say(f"tune: {batch} rows a step, a few steps a trial, {tuner.seconds / 60:g} minutes at most")
    best: Trial | None = None
    try:
        best = tuner.run()
    finally:  # what was measured before an interruption is kept
        output.mkdir(parents=True, exist_ok=True)
        _write_json(output / "tune.json", {"ds_config": str(began_with)} | tuner.report(best))
    if best is None:
        tuner.say(f"tune: no trial could be measured ({tuner.trials[0].problem}); see {shown}")
        return 1
    for line in tuner.table(best):
        tuner.say(line)
    if not best.changes:
        kept = os.path.relpath(began_with)
        tuner.say(f"tune: {kept} stays: nothing was faster every time; every trial is in {shown}")
        return 0
    path = configs / f"tuned-{began_with.stem.removeprefix('tuned-')}.json"
    wrote, first = "replaced" if path.exists() else "wrote", tuner.trials[0].speed
    _write_json(path, tuner.changed(best.changes))
    gain = f", {best.speed / first:.2f} times as fast" if first else ""
    listed = ", ".join(f"{key}={value}" for key, value in best.changes.items())
    tuner.say(
        f"tune: {wrote} {os.path.relpath(path)}: {began_with.name} with {listed}{gain}; every trial is in {shown}"
    )
    tuner.say(f"      train with it: --deepspeed_config {os.path.relpath(path)}")
    return 0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_bytes(path, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])

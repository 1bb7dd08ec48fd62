"""A peer's own best learning rate and batch: short runs over a sample of the documents, a coordinate after the other.

Rates at the middle batch first; then the other batches, each at the best rate times the square root of the batches'
ratio; then the neighbours of the best pair, half and double of each, until none is better. Each run has its whole
schedule. What counts is bits per byte at its end, after the same documents. A trial that is on disk is not repeated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.race.peers import Settings

_EDGE = 2.0  # factor between neighbouring rates


@dataclass(frozen=True)
class Trial:
    """One short run; `seconds` are of training alone, `cost` of the whole trial."""

    settings: Settings
    bits_per_byte: float
    seconds: float
    cost: float


@dataclass
class Found:
    """What a search came to; `complete` is false if its budget ended it."""

    trials: list[Trial]
    complete: bool

    @property
    def best(self) -> Trial:
        """Of the fewest bits per byte."""
        return min(self.trials, key=lambda trial: trial.bits_per_byte)

    @property
    def cost(self) -> float:
        """Seconds of all trials, those known from earlier included."""
        return sum(trial.cost for trial in self.trials)


class Memory:
    """Trials on disk, by a key that names the peer's version, its sizes and the sample."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._all: dict[str, dict[str, dict]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def get(self, settings: Settings) -> Trial | None:
        """None if it was never tried."""
        found = self._all.get(self.key, {}).get(str(settings))
        return Trial(settings, found["bits_per_byte"], found["seconds"], found["cost"]) if found else None

    def put(self, trial: Trial) -> None:
        """Written at once: a search that is interrupted goes on where it was."""
        self._all.setdefault(self.key, {})[str(trial.settings)] = asdict(trial)
        self.path.write_text(json.dumps(self._all, indent=1), encoding="utf-8")


def search(
    run: Callable[[Settings], Trial],
    rates: Sequence[float],
    batches: Sequence[int],
    *,
    budget: float,
    memory: Memory,
    say: Callable[[str], None],
) -> Found:
    """Try settings until the best has no better neighbour, or the trials have cost `budget` seconds; never none."""
    found = Found([], complete=True)
    for settings in _plan(found, rates, batches):
        trial = memory.get(settings)
        if trial is None:
            if found.trials and found.cost + max(trial.cost for trial in found.trials) > budget:
                found.complete = False
                break
            trial = run(settings)
            memory.put(trial)
        found.trials.append(trial)
        say(f"  {trial.settings}: {trial.bits_per_byte:.3f} bits a byte ({trial.seconds:.0f} s of training)")
    return found


def _plan(found: Found, rates: Sequence[float], batches: Sequence[int]) -> Iterator[Settings]:
    """What to try next, decided after the trial before it has been added to `found`."""
    middle = sorted(batches)[len(batches) // 2]
    yield from (Settings(rate, middle) for rate in rates)
    rate = found.best.settings.learning_rate
    yield from (Settings(_round(rate * math.sqrt(batch / middle)), batch) for batch in batches if batch != middle)
    while True:
        best, tried = found.best.settings, {str(trial.settings) for trial in found.trials}
        rate, batch = best.learning_rate, best.batch
        around = [
            Settings(_round(rate * _EDGE), batch),
            Settings(_round(rate / _EDGE), batch),
            Settings(rate, batch * 2),
            Settings(rate, max(1, batch // 2)),
        ]
        untried = [settings for settings in around if str(settings) not in tried]
        if not untried:
            return
        yield untried[0]


def _round(rate: float) -> float:
    """Two digits, so that a rate reached in two ways is one."""
    return float(f"{rate:.1e}")

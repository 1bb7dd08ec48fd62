"""Other trainers, each driven from outside by its own command line; none of their code is here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Size:
    """What the race fixes of the model; the rest of its shape is the peer's own choice. `width` is the hidden size."""

    width: int
    layers: int
    max_seq_len: int


@dataclass(frozen=True)
class Settings:
    """What is searched for: the peak of the learning rate, and documents or rows an optimizer step."""

    learning_rate: float
    batch: int

    def __str__(self) -> str:
        return f"lr {self.learning_rate:g}, batch {self.batch}"


@dataclass(frozen=True)
class Point:
    """Weights as they were after `step`; `tokens` are those trained on by then, padding not counted."""

    step: int
    seconds: float
    tokens: int
    weights: Path


@dataclass(frozen=True)
class Course:
    """A finished training run: seconds of training, of the start-up before it, of the pauses for saves."""

    points: Sequence[Point]
    steps: int
    seconds: float
    tokens: int
    start_up: float
    paused: float
    command_seconds: float
    settings: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """All but the points, for a result file."""
        return {name: value for name, value in asdict(self).items() if name != "points"}


class Driver(Protocol):
    """A peer. `kind` is what peers/score.py loads its weights as, with `pythonpath` to find its code."""

    name: str
    kind: str
    precision: str  # that it computes in on this machine
    source: str  # which version of it
    tokenizer: Path
    own_tokenizer: bool  # that it came with or was given, not one made of the text, as ours is
    bos_id: int
    eos_id: int

    @property
    def pythonpath(self) -> Path | None:
        """Where its code is, if it is no installed package."""
        ...

    def shape(self) -> dict[str, Any]:
        """The network's shape in train.py's flags."""
        ...

    def recommended(self) -> str:
        """Its own defaults of what is searched for, for people."""
        ...

    def train(self, settings: Settings, documents: Path, folder: Path, points: int) -> Course:
        """One epoch over `documents` (.jsonl), files into `folder`, weights kept at about `points` places, the end one.

        `points=1` keeps those of the end alone.
        """
        ...


def fingerprint(paths: Iterable[Path]) -> str:
    """A short hash of what these files hold: which version of the peer it was."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def kept_steps(steps: int, interval: int, count: int) -> list[int]:
    """Which of the multiples of `interval` to keep: about `count`, closer together early on, and the last step."""
    return denser_early([*range(interval, steps, interval), steps], count)


def denser_early(every: Sequence[Item], count: int) -> list[Item]:
    """About `count` of the items, the last among them: the k-th at (k / count)^1.5 of the way."""
    if len(every) <= count:
        return list(every)
    places = {max(0, round(len(every) * (k / count) ** 1.5) - 1) for k in range(1, count + 1)}
    return [every[place] for place in sorted(places)]

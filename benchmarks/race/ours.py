"""Our own side of the race: prepare.py, then `deepspeed train.py`, followed from outside like a peer."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.race.heldout import ROOT
from benchmarks.race.peers import Course, Point, denser_early
from benchmarks.race.peers.process import Clock, follow
from common.errors import UserError
from corpus.manifest import Manifest
from corpus.shards import Corpus as Tokens
from stress.chaos.session import free_port
from training.config.load import load

_STEP = re.compile(r"^step ([\d,]+)/[\d,]+ ")
_LOOK_SECONDS = 0.05  # between two looks at model/
_NEVER = 1_000_000_000  # steps: checkpoints and samples but the last are no part of the race
_EVAL_TOKENS = 20_000  # enough to tell that a model is the best so far, which is when it is written
_BETWEEN = 3  # steps between two evaluations at least, so that some intervals have no pause in them
_MOST_BETWEEN_LINES = 5
_KEPT = 3  # models for each that is judged, to choose from


@dataclass(frozen=True)
class Corpus:
    """A prepared folder, the seconds that it took, its training tokens."""

    folder: Path
    seconds: float
    tokens: int


def prepare(documents: Path, held_out: Path, folder: Path, cores: int, tokenizer: Sequence[object]) -> Corpus:
    """`prepare.py` as a user would call it; `tokenizer` holds its flags for one."""
    shutil.rmtree(folder, ignore_errors=True)
    seconds = follow(
        [
            sys.executable,
            ROOT / "prepare.py",
            "--input",
            documents.absolute(),
            "--val_input",
            held_out.absolute(),
            *tokenizer,
            "--workers",
            cores,
            "--output",
            folder.absolute(),
        ],
        folder=ROOT,
        log=folder.with_suffix(".log"),
        environment={},
    )
    return Corpus(folder, seconds, Manifest.read(folder).splits["train"].tokens)


@dataclass(frozen=True)
class Recipe:
    """How ours is started. `length` is ["--epochs", "1"] or the like; `flags` and `settings` go on as they are.

    `points` are those of its curve, at most: judging one takes as long as some steps.
    """

    config: Path
    settings: Sequence[str]
    flags: Sequence[str]
    length: Sequence[str]
    shape: dict[str, Any]
    max_seq_len: int
    processes: int
    cores: int
    points: int

    def intervals(self, corpus: Path) -> tuple[int, int]:
        """Steps between evaluations, and between lines of the log."""
        evaluation = max(_BETWEEN, self.steps(corpus) // (_KEPT * self.points))
        return evaluation, min(_MOST_BETWEEN_LINES, evaluation // _BETWEEN)

    def steps(self, corpus: Path) -> int:
        """Of the whole run, about."""
        name, value = self.length
        if name == "--max_steps":
            return int(value)
        config = load(self.config, self.settings)
        batch = [config.get(key, 1) for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]
        if not all(isinstance(part, int) for part in batch):
            raise UserError(
                f"{self.config}: the race needs the micro-batch and the accumulation as numbers: write "
                "them down, or give --race_steps"
            )
        rows = Tokens.open(corpus, verify="size").split("train").num_rows(self.max_seq_len)
        return max(1, int(float(value) * rows / (batch[0] * batch[1] * self.processes)))

    def command(self, corpus: Path, output: Path) -> list[object]:
        """The whole command line."""
        beside = Path(sys.executable).with_name("deepspeed")
        words: list[object] = [
            beside if beside.is_file() else "deepspeed",
            "--num_gpus",
            self.processes,
            "--master_port",
            free_port(),
            ROOT / "train.py",
        ]
        words += [
            "--deepspeed_config",
            self.config.absolute(),
            "--data",
            corpus.absolute(),
            "--output",
            output.absolute(),
            "--resume",
            "never",
            "--max_seq_len",
            self.max_seq_len,
            *self.length,
        ]
        for name, value in self.shape.items():
            words += [f"--{name}", value]
        evaluation, line = self.intervals(corpus)
        words += [
            "--log_interval",
            line,
            "--eval_interval",
            evaluation,
            "--eval_tokens",
            _EVAL_TOKENS,
            "--sample_interval",
            _NEVER,
            "--save_interval",
            _NEVER,
            *self.flags,
        ]
        return [*words, "--set", *self.settings] if self.settings else words


def train(recipe: Recipe, corpus: Corpus, folder: Path) -> tuple[Course, str]:
    """A whole run; returns it and its precision. Its evaluations, with what is written then, are pauses."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output, marks = folder / "run", []

    def on_line(line: str, seconds: float) -> None:
        if found := _STEP.match(line):
            marks.append((int(found[1].replace(",", "")), seconds))

    with _Keeper(output, folder / "points") as keeper:
        command = recipe.command(corpus.folder, output)
        seconds = follow(
            command,
            folder=ROOT,
            log=folder / "train.log",
            on_line=on_line,
            environment={
                "OMP_NUM_THREADS": max(1, recipe.cores // recipe.processes),
                "PYTHONUNBUFFERED": 1,
                "PYTHONPATH": ROOT,
            },
        )
    rows = read_metrics(output)
    evaluated = {row["step"]: row["tokens"] for row in rows if row["split"] == "val"}
    if len(marks) < 2 or not evaluated:
        raise UserError(f"our run was too short to be timed; see {folder}/train.log")
    clock = Clock(marks, set(evaluated))
    points = denser_early(
        [
            Point(step, clock.training(step), evaluated[step], path)
            for step, path in sorted(keeper.kept.items())
            if step
        ],
        recipe.points,
    )
    last, tokens = marks[-1][0], max(row["tokens"] for row in rows)
    course = Course(
        points,
        last,
        clock.training(last),
        tokens,
        corpus.seconds + clock.start_up,
        clock.paused,
        corpus.seconds + seconds,
        {"command": " ".join(_shown(word) for word in command[5:])},
    )
    return course, precision(output)


def _shown(word: object) -> str:
    """Without the folders of this machine."""
    return word.name if isinstance(word, Path) else str(word)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl; none while there is no such file."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def precision(run: Path) -> str:
    """What the run computed in, by the JSON that it saved."""
    config = json.loads((run / "ds_config.json").read_text(encoding="utf-8"))
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


class _Keeper:
    """Keeps every model that a run writes: a second name for the file, which the run replaces and never changes."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.kept: dict[int, Path] = {}
        self._ended = threading.Event()
        self._seen: int | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        """The line of metrics of an evaluation is written before its model is."""
        weights = self.run / "model" / "model.safetensors"
        if not weights.is_file() or weights.stat().st_ino == self._seen:
            return
        steps = [row["step"] for row in read_metrics(self.run) if row["split"] == "val"]
        place = self.folder / f"step{steps[-1] if steps else 0}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.link(weights, place / weights.name)
        shutil.copy(weights.with_name("config.json"), place)
        self._seen = (place / weights.name).stat().st_ino
        self.kept[steps[-1] if steps else 0] = place

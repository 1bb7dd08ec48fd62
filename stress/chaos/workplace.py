"""The folder of the trials: a small corpus made once, a tiny run's flags, and the run that nothing interrupts."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corpus.pipeline import prepare
from corpus.settings import PreparationSettings
from sample_stories import write_sample_corpus
from stress.chaos import compare
from stress.chaos.session import ROOT, Session, free_port

STORIES, VOCABULARY = 3_000, 800
# 2.3 M parameters: large enough for a save to take as long as a few steps
SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "moe_intermediate_size": 192,
    "max_seq_len": 64,
}
BATCH = 8


@dataclass(frozen=True)
class Pace:
    """Steps of a run, and between the things that it does."""

    steps: int = 60
    save: int = 5
    evaluate: int = 10
    sample: int = 30

    def flags(self) -> list[str]:
        """Return the flags of train.py."""
        values = {
            "max_steps": self.steps,
            "save_interval": self.save,
            "eval_interval": self.evaluate,
            "sample_interval": self.sample,
            "log_interval": 1,
            "keep_last": 3,
            "eval_tokens": 2_000,
        }
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]


ENDLESS = Pace(steps=100_000, save=100, evaluate=1_000, sample=1_000)


@dataclass
class Workplace:
    """Where all trials of one command happen."""

    folder: Path
    seed: int
    pace: Pace = field(default_factory=Pace)
    port: int = field(default_factory=free_port)  # the same at every start: one left bound would be seen
    sessions: int = 0

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(self.seed)
        self.sessions = len(list(self.folder.glob("logs/*.log")))  # those of earlier commands

    @property
    def corpus(self) -> Path:
        """The prepared corpus, made at first use."""
        folder = self.folder / "corpus"
        if not (folder / "manifest.json").is_file():
            stories = self.folder / "stories.jsonl"
            write_sample_corpus(stories, STORIES, hamlet=True)
            prepare([stories], folder, PreparationSettings(vocab_size=VOCABULARY), workers=1, progress=None)
        return folder

    def flags(self, run: Path, *more: object, pace: Pace | None = None) -> list[object]:
        """What train.py gets on two processes; `more` are KEY=VALUE for --set, then other flags."""
        settings = [
            "fp16.enabled=false",
            f"train_batch_size={BATCH}",
            "optimizer.params.lr=2e-3",
            f"train_micro_batch_size_per_gpu={BATCH // 2}",
            "gradient_accumulation_steps=1",
        ]
        sizes = [word for name, value in SIZES.items() for word in (f"--{name}", value)]
        return [
            "--deepspeed_config",
            ROOT / "ds_configs" / "t4x2.json",
            "--data",
            self.corpus,
            "--output",
            run,
            "--skip_preflight",
            *sizes,
            *(pace or self.pace).flags(),
            "--set",
            *settings,
            *more,
        ]

    def session(self, flags: Sequence[object], name: str) -> Session:
        """Start it; its output goes to logs/N-NAME.log."""
        self.sessions += 1
        log = self.folder / "logs" / f"{self.sessions:03d}-{name}.log"
        return Session(flags, folder=self.folder, log=log, port=self.port)

    def fresh(self, name: str) -> Path:
        """The path of a new run."""
        run = self.folder / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        return run

    def reference(self) -> Path:
        """The run that nothing interrupts, made at first use; RuntimeError if even that one fails."""
        run = self.folder / "runs" / "reference"
        if (run / "summary.json").is_file() and compare.last_step(run) == self.pace.steps:
            return run
        session = self.finish(self.fresh("reference"), "reference")
        if session.runner.returncode != 0:
            raise RuntimeError(f"the uninterrupted run failed:\n{session.output}")
        return run

    def finish(self, run: Path, name: str) -> Session:
        """Start the run again and let it come to its end."""
        with self.session(self.flags(run), name) as session:
            session.wait_end()
        return session

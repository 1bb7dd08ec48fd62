"""What the steps of `benchmarks.gpu.check` share: the folder, the time that is left, processes, flags of train.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import sessions
from benchmarks.gpu.sessions import ROOT, Session
from benchmarks.gpu.table import FAILED, NOT_HERE, OK, RAN
from benchmarks.gpu.watched import Watch

MICRO, SEQ_LEN = 32, 512
QUIET = ("--eval_interval", 1000, "--sample_interval", 1000, "--save_interval", 1000, "--log_interval", 1)
"""Nothing beside training but an evaluation before it and one at its end."""


class Failed(Exception):
    """A step cannot go on; says why."""


@dataclass
class Bench:
    """One command, on `wanted` GPUs (None: two, or one where there is one)."""

    work: Path
    wanted: int | None = None
    null_driver: bool = False
    data: Path | None = None
    wheels: Path | None = None
    stretch: float = 1.0
    """How many times the planned seconds everything may take."""
    deadline: float = 0.0
    """When the step that is under way has to be over, by time.monotonic()."""
    machine: dict[str, Any] = field(default_factory=dict)
    """What the self-check has found out."""

    @property
    def processes(self) -> int:
        """One a GPU."""
        return self.wanted or max(1, min(2, self.machine.get("gpus", 1)))

    @property
    def left(self) -> float:
        """Seconds of the step."""
        if (seconds := self.deadline - time.monotonic()) <= 0:
            raise Failed("no time left")
        return seconds

    def judged(self, good: bool) -> str:
        """Return the verdict on numbers, which are not real on a null driver."""
        return RAN if self.null_driver else OK if good else FAILED

    def figure(self, text: str) -> str:
        """Return `text`, a figure, where the driver computes."""
        return NOT_HERE if self.null_driver else text

    def config(self, processes: int, kind: str = "") -> Path:
        """Return the DeepSpeed JSON for so many GPUs; one for two is copied, since --plan goes by the name."""
        path = ROOT / "ds_configs" / f"t4x{processes}{kind}.json"
        if path.is_file():
            return path
        return Path(shutil.copy(ROOT / "ds_configs" / f"t4x2{kind}.json", self.work / path.name))

    # --- processes ----------------------------------------------------------------------------------------------------

    def python(self, name: str, words: Sequence[object]) -> str:
        """Run a Python program to its end; return what it printed."""
        log = self.work / f"{name}.txt"
        self.finish(process := sessions.start(words, log))
        output = log.read_text(encoding="utf-8", errors="replace")
        if process.returncode:
            raise Failed(f"status {process.returncode}: {next(iter(output.strip().splitlines()[-1:]), '')[:200]}")
        return output

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a process as long as there is time."""
        if sessions.wait([process], self.left):
            raise Failed("no time left")

    def train(
        self,
        name: str,
        *flags: object,
        config: Path | None = None,
        watch: Watch | None = None,
        processes: int | None = None,
        must_end: bool = True,
    ) -> Session:
        """Run train.py on the check's data; Failed if it does not end as it should, unless that is not wanted."""
        count = processes or self.processes
        config = config or self.config(count)
        watch = replace(watch or Watch(), null_driver=self.null_driver)
        words = ["--deepspeed_config", config, "--data", self.data, *flags]
        session = sessions.session(self.work / name, count, words, watch, self.left)
        if must_end and (problem := session.problem):
            raise Failed(f"{problem} ({session.folder}/rank0.txt)")
        return session

    def plan(self, name: str, *flags: object, config: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `--plan` for a session, beside it; `planned` reads the result."""
        config = config or self.config(self.processes)
        words = ["train.py", "--plan", "--deepspeed_config", config, "--data", self.data, *flags]
        return sessions.start(words, self.work / f"{name}.txt")

    def planned(self, name: str, process: subprocess.Popen[bytes]) -> float:
        """Return the GiB that `--plan` has said."""
        self.finish(process)
        return sessions.planned_gib((self.work / f"{name}.txt").read_text(encoding="utf-8"))

    def tidy(self) -> None:
        """Remove the weights of all sessions so far: half a GB each. Logs and figures stay."""
        for run in self.work.glob("*/run"):
            for part in ("checkpoints", "model"):
                shutil.rmtree(run / part, ignore_errors=True)


def batch(processes: int, micro: int, accumulation: int, *more: str) -> list[object]:
    """Return the flags of a batch; `more` are other KEY=VALUE."""
    rows = f"train_batch_size={micro * accumulation * processes}"
    sizes = f"train_micro_batch_size_per_gpu={micro}", f"gradient_accumulation_steps={accumulation}"
    return ["--set", rows, *sizes, *more]


def install(bench: Bench) -> str:
    """Install what train.py needs from a folder of wheels alone; return what pip said last."""
    words = ["-m", "pip", "install", "--no-index", "--find-links", bench.wheels, "-r", "requirements.txt"]
    said = bench.python("install", words).strip().splitlines()
    return next((line for line in reversed(said) if line.startswith("Successfully")), "all was there already")


def python_version() -> str:
    """Return that of this process, which all others have."""
    return ".".join(map(str, sys.version_info[:3]))

"""nanoGPT: train.py of a checkout that the user has, run in a copy. It is dense; ours has experts, as much active."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.race.peers import Course, Point, Settings, Size, fingerprint, kept_steps
from benchmarks.race.peers.packed import stream, tokenizer_for
from benchmarks.race.peers.process import Clock, follow
from common.errors import UserError

CLONE = "git clone https://github.com/karpathy/nanoGPT"
_STEP = re.compile(r"^iter (\d+): loss")
_HEADS, _EXPERTS, _ACTIVE = 8, 4, 2
_WARM_UP = 0.05  # of the run; its own 2,000 iterations are for 600,000


def is_here(path: Path) -> bool:
    """Whether the folder is a checkout of nanoGPT."""
    model = path / "model.py"
    return (path / "train.py").is_file() and model.is_file() and "GPTConfig" in model.read_text(encoding="utf-8")


class NanoGPT:
    """Driver; a tokenizer is trained on `texts` if none is given."""

    # its script uses autocast on GPUs only
    name, kind, precision = "nanoGPT", "nanogpt", "fp32"

    def __init__(
        self, checkout: Path, folder: Path, size: Size, threads: int, texts: Sequence[str], tokenizer: Path | None
    ) -> None:
        self.size, self.threads = size, threads
        files = [checkout / name for name in ("train.py", "model.py", "configurator.py")]
        self.source = fingerprint(files)
        self.pythonpath = folder.absolute() / "nanogpt"
        shutil.rmtree(self.pythonpath, ignore_errors=True)
        self.pythonpath.mkdir(parents=True)
        for path in files:
            shutil.copy(path, self.pythonpath)
        self.tokenizer, self.vocabulary, self.bos_id, self.eos_id = tokenizer_for(texts, tokenizer, folder)
        self.own_tokenizer = tokenizer is not None

    def shape(self) -> dict[str, Any]:
        """Experts that together have as many active weights as its feed-forward layer: 8 width^2."""
        return {
            "use_moe": "true",
            "hidden_size": self.size.width,
            "num_hidden_layers": self.size.layers,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "num_experts": _EXPERTS,
            "num_experts_per_tok": _ACTIVE,
            "moe_intermediate_size": max(8, round(8 * self.size.width / (3 * _ACTIVE) / 8) * 8),
        }

    def recommended(self) -> str:
        """Of train.py, for GPT-2's size."""
        return "learning_rate 6e-4, batch 480 rows of 1024, cosine to a tenth, AdamW (0.9, 0.95), weight decay 0.1"

    def train(self, settings: Settings, documents: Path, folder: Path, points: int) -> Course:
        """As many tokens as the documents have; its rows are random cut-outs of the stream."""
        run = _Run(self, settings, documents, folder.absolute(), points)
        return run.course(
            follow(
                run.command,
                folder=self.pythonpath,
                log=folder / "train.log",
                on_line=run.line,
                environment={"OMP_NUM_THREADS": self.threads},
            )
        )


class _Run:
    """One start of train.py, followed line by line. "iter k" comes after the step with index k: k + 1 are done then."""

    def __init__(self, peer: NanoGPT, settings: Settings, documents: Path, folder: Path, points: int) -> None:
        self.folder, self.settings = folder, settings
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.length = peer.size.max_seq_len
        ids = stream(documents, peer.tokenizer, peer.bos_id, peer.eos_id)
        wanted = len(ids) // (settings.batch * self.length)
        if wanted < 2:
            raise UserError(f"{documents.name} is too short for two steps of {settings.batch} rows of {self.length}")
        # it saves at multiples of an interval only, so the run ends at one
        self.interval = max(1, wanted // (2 * points)) if points > 1 else wanted
        self.steps = wanted // self.interval * self.interval
        self.kept = kept_steps(self.steps, self.interval, points)
        data = peer.pythonpath / "data" / "race"
        data.mkdir(parents=True, exist_ok=True)
        ids.tofile(data / "train.bin")
        ids.tofile(data / "val.bin")  # it wants one; its own losses are not used
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": peer.vocabulary}))
        rate = settings.learning_rate
        self.flags = {
            "dataset": "race",
            "out_dir": folder / "out",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "compile": torch.cuda.is_available(),
            "n_layer": peer.size.layers,
            "n_head": _HEADS,
            "n_embd": peer.size.width,
            "block_size": self.length,
            "batch_size": settings.batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": rate,
            "min_lr": rate / 10,
            "max_iters": self.steps,
            "lr_decay_iters": self.steps,
            "warmup_iters": max(1, round(_WARM_UP * self.steps)),
            "eval_interval": self.interval,
            "eval_iters": 1,
            "log_interval": 1,
        }
        if not torch.cuda.is_available():
            self.flags["dtype"] = "float32"
        self.command: list[object] = [
            sys.executable,
            "-u",
            "train.py",
            *(f"--{name}={value}" for name, value in self.flags.items()),
        ]
        self.marks: list[tuple[int, float]] = []
        self.weights: dict[int, Path] = {}

    def line(self, line: str, seconds: float) -> None:
        """The save of step k is before the step with index k, so its line says that the save is complete."""
        if not (found := _STEP.match(line)):
            return
        index = int(found[1])
        if index < self.steps:
            self.marks.append((index + 1, seconds))
        if index in self.kept:
            self.weights[index] = self.folder / f"step{index}.pt"
            os.replace(self.folder / "out" / "ckpt.pt", self.weights[index])

    def course(self, command_seconds: float) -> Course:
        """After the end."""
        if missing := [step for step in self.kept if step not in self.weights]:
            raise UserError(f"nanoGPT's trainer left no weights of step {missing[0]}; see {self.folder}/train.log")
        clock = Clock(self.marks, set(range(self.interval, self.steps, self.interval)))
        tokens = self.settings.batch * self.length
        points = [Point(step, clock.training(step), step * tokens, self.weights[step]) for step in self.kept]
        flags = {name: value for name, value in self.flags.items() if name != "out_dir"}
        return Course(
            points,
            self.steps,
            points[-1].seconds,
            self.steps * tokens,
            clock.start_up,
            clock.paused,
            command_seconds,
            flags,
        )

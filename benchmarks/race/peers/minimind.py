"""MiniMind: trainer/train_pretrain.py of a checkout that the user has, run in a copy: the checkout stays as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.race.heldout import read_texts
from benchmarks.race.peers import Course, Point, Settings, Size, fingerprint, kept_steps
from benchmarks.race.peers.process import Clock, follow
from common.errors import UserError

CLONE = "git clone https://github.com/jingyaogong/minimind"
_SCRIPT = Path("trainer/train_pretrain.py")
_NOT_COPIED = shutil.ignore_patterns(
    ".git", "images", "out", "checkpoints", "*.pth", "*.jsonl", "__pycache__", "*.png", "*.jpg", "*.gif"
)
_STEP = re.compile(r"Epoch:\[1/1\]\((\d+)/(\d+)\)")
_SAVES = 24  # in a run; a fixed interval is all that the trainer offers, so more than are kept
_SHAPE = """import json, sys
from model.model_minimind import MiniMindConfig
width, layers = map(int, sys.argv[1:])
print(json.dumps(MiniMindConfig(hidden_size=width, num_hidden_layers=layers, use_moe=True).to_dict()))
"""


def is_here(path: Path) -> bool:
    """Whether the folder is a checkout of MiniMind."""
    return (path / _SCRIPT).is_file()


class MiniMind:
    """Driver; `folder` is the work folder that the copy goes to."""

    name, kind, precision = "MiniMind", "minimind", "fp32"

    def __init__(self, checkout: Path, folder: Path, size: Size, threads: int) -> None:
        self.size, self.threads = size, threads
        self.source = fingerprint(
            [
                checkout / _SCRIPT,
                checkout / "model" / "model_minimind.py",
                checkout / "trainer" / "trainer_utils.py",
                checkout / "dataset" / "lm_dataset.py",
            ]
        )
        self.pythonpath = folder.absolute() / "minimind"
        shutil.rmtree(self.pythonpath, ignore_errors=True)
        shutil.copytree(checkout, self.pythonpath, ignore=_NOT_COPIED)
        self.tokenizer, self.own_tokenizer = self.pythonpath / "model" / "tokenizer.json", True
        self.config = self._read_config()
        self.bos_id, self.eos_id = self.config["bos_token_id"], self.config["eos_token_id"]

    def _read_config(self) -> dict[str, Any]:
        command = [sys.executable, "-c", _SHAPE, str(self.size.width), str(self.size.layers)]
        found = subprocess.run(command, cwd=self.pythonpath, capture_output=True, text=True, check=False)
        if found.returncode:
            raise UserError(f"MiniMind's configuration cannot be read: {found.stderr.strip().splitlines()[-1:]}")
        return json.loads(found.stdout)

    def shape(self) -> dict[str, Any]:
        """Its defaults at this width, in train.py's flags."""
        same = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "rope_theta",
            "rms_norm_eps",
        )
        return {"use_moe": "true"} | {name: self.config[name] for name in same}

    def recommended(self) -> str:
        """Of its argument parser."""
        text = (self.pythonpath / _SCRIPT).read_text(encoding="utf-8")
        found = dict(re.findall(r"--(batch_size|learning_rate|accumulation_steps)\".*?default=([\w.-]+)", text))
        return ", ".join(f"--{name} {value}" for name, value in found.items())

    def train(self, settings: Settings, documents: Path, folder: Path, points: int) -> Course:
        """One epoch, fp32 on CPU: its trainer has no autocast there. Saves and what they take are no training."""
        run = _Run(self, settings, documents, folder.absolute(), points)
        return run.course(
            follow(
                run.command,
                folder=self.pythonpath / "trainer",
                log=folder / "train.log",
                environment=self._environment(folder),
                on_line=run.line,
            )
        )

    def _environment(self, folder: Path) -> dict[str, object]:
        cache = folder.absolute() / "cache"
        return {
            "OMP_NUM_THREADS": self.threads,
            "PYTHONPATH": self.pythonpath,
            "HF_HOME": cache,
            "HF_DATASETS_CACHE": cache,
            "HF_HUB_OFFLINE": 1,
            "TQDM_DISABLE": 1,
        }


class _Run:
    """One start of the trainer, followed line by line."""

    def __init__(self, peer: MiniMind, settings: Settings, documents: Path, folder: Path, points: int) -> None:
        self.folder, self.settings = folder, settings
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.lengths = _lengths(peer.tokenizer, documents, peer.size.max_seq_len)
        self.steps = -(-len(self.lengths) // settings.batch)
        self.interval = max(1, self.steps // _SAVES) if points > 1 else self.steps
        self.kept = kept_steps(self.steps, self.interval, points)
        self.marks: list[tuple[int, float]] = []
        self.weights: dict[int, Path] = {}
        self.padding = 1 - sum(self.lengths) / (len(self.lengths) * peer.size.max_seq_len)
        self.flags = {
            "hidden_size": peer.size.width,
            "num_hidden_layers": peer.size.layers,
            "use_moe": 1,
            "max_seq_len": peer.size.max_seq_len,
            "batch_size": settings.batch,
            "learning_rate": settings.learning_rate,
            "accumulation_steps": 1,
            "epochs": 1,
            "num_workers": max(1, min(8, peer.threads - 1)),
            "log_interval": 1,
            "save_interval": self.interval,
        }
        self.command: list[object] = [
            sys.executable,
            "-u",
            _SCRIPT.name,
            "--save_dir",
            folder / "out",
            "--data_path",
            documents.absolute(),
        ]
        for name, value in self.flags.items():
            self.command += [f"--{name}", value]

    def line(self, line: str, seconds: float) -> None:
        """A step's line comes before that step's save, so the next step's line says that the save is complete."""
        if not (found := _STEP.search(line)):
            return
        step = int(found[1])
        self.marks.append((step, seconds))
        if (step - 1) % self.interval == 0 and step > 1:
            self._take(step - 1)

    def _take(self, step: int) -> None:
        """Move the file away, which takes no time; the trainer writes it anew each time."""
        for path in (self.folder / "out").glob("*.pth"):
            if step in self.kept:
                self.weights[step] = self.folder / f"step{step}.pth"
                os.replace(path, self.weights[step])

    def course(self, command_seconds: float) -> Course:
        """After the trainer's end."""
        self._take(self.steps)
        if not self.marks or self.marks[-1][0] != self.steps or self.steps not in self.weights:
            raise UserError(f"MiniMind's trainer ended without its {self.steps} steps; see {self.folder}/train.log")
        clock = Clock(self.marks, {step for step, _ in self.marks if step % self.interval == 0})
        documents, total = len(self.lengths), sum(self.lengths)
        points = [
            Point(
                step,
                clock.training(step),
                total * min(documents, step * self.settings.batch) // documents,
                self.weights[step],
            )
            for step in self.kept
        ]
        return Course(
            points,
            self.steps,
            points[-1].seconds,
            total,
            clock.start_up,
            clock.paused,
            command_seconds,
            self.flags | {"dtype": "float32 on CPU", "padding": round(self.padding, 3)},
        )


def _lengths(tokenizer: Path, documents: Path, max_seq_len: int) -> list[int]:
    """Tokens that each document is trained on: cut off at max_seq_len, its two marks counted, padding not."""
    coded = Tokenizer.from_file(str(tokenizer)).encode_batch(read_texts(documents), add_special_tokens=False)
    return [min(len(one.ids), max_seq_len - 2) + 2 for one in coded]

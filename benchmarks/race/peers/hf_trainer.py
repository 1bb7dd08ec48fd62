"""transformers' Trainer on its own Qwen3-MoE, from the package, over packed rows; hf_script.py is what runs."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.race.peers import Course, Point, Settings, Size, kept_steps
from benchmarks.race.peers.packed import feed_forward_width, stream, tokenizer_for
from benchmarks.race.peers.process import Clock, follow
from common.errors import UserError
from common.hardware import detect

WORD = "transformers"
_STEP = re.compile(r"^step (\d+)$")
_HEADS, _KEY_VALUE_HEADS, _EXPERTS, _ACTIVE = 8, 4, 4, 2


class HFTrainer:
    """Driver; a tokenizer is trained on `texts` if none is given."""

    name, kind, pythonpath = "transformers' Trainer", "transformers", None

    def __init__(self, folder: Path, size: Size, threads: int, texts: Sequence[str], tokenizer: Path | None) -> None:
        self.size, self.threads = size, threads
        self.source = importlib.metadata.version("transformers")
        self.tokenizer, self.vocabulary, self.bos_id, self.eos_id = tokenizer_for(texts, tokenizer, folder)
        self.own_tokenizer = tokenizer is not None
        self.precision = "bf16" if detect().bf16_fast else "fp32"

    def shape(self) -> dict[str, Any]:
        """Qwen3-MoE with 4 experts, 2 a token."""
        return {
            "use_moe": "true",
            "hidden_size": self.size.width,
            "num_hidden_layers": self.size.layers,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _KEY_VALUE_HEADS,
            "head_dim": self.size.width // _HEADS,
            "num_experts": _EXPERTS,
            "num_experts_per_tok": _ACTIVE,
            "moe_intermediate_size": feed_forward_width(self.size.width) // _ACTIVE,
        }

    def recommended(self) -> str:
        """The defaults of TrainingArguments."""
        return "learning_rate 5e-5, per_device_train_batch_size 8, linear decay, no warm-up"

    def train(self, settings: Settings, documents: Path, folder: Path, points: int) -> Course:
        """One epoch over packed rows; autocast to bf16 where the processor has it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder, length = folder.absolute(), self.size.max_seq_len
        ids = stream(documents, self.tokenizer, self.bos_id, self.eos_id)
        rows = ids[: len(ids) // length * length].reshape(-1, length)
        if not len(rows):
            raise UserError(f"{documents.name} has fewer than {length} tokens: give more text or a shorter row")
        np.save(folder / "rows.npy", rows)
        steps = -(-len(rows) // settings.batch)
        kept = kept_steps(steps, max(1, steps // (2 * points)) if points > 1 else steps, points)
        shape = {name: value for name, value in self.shape().items() if name != "use_moe"}
        (folder / "task.json").write_text(
            json.dumps(
                {
                    "shape": shape | {"vocab_size": self.vocabulary},
                    "kept": kept,
                    "batch": settings.batch,
                    "learning_rate": settings.learning_rate,
                    "bf16": self.precision == "bf16",
                }
            ),
            encoding="utf-8",
        )
        marks: list[tuple[int, float]] = []

        def on_line(line: str, seconds: float) -> None:
            if found := _STEP.match(line):
                marks.append((int(found[1]), seconds))

        script = Path(__file__).with_name("hf_script.py")
        seconds = follow(
            [sys.executable, "-u", script, folder],
            folder=folder,
            log=folder / "train.log",
            environment={"OMP_NUM_THREADS": self.threads, "HF_HUB_OFFLINE": 1},
            on_line=on_line,
        )
        clock = Clock(marks, set(kept))
        found = [
            Point(step, clock.training(step), min(len(rows), step * settings.batch) * length, folder / f"step{step}")
            for step in kept
        ]
        return Course(
            found,
            steps,
            found[-1].seconds,
            rows.size,
            clock.start_up,
            clock.paused,
            seconds,
            {
                "learning_rate": settings.learning_rate,
                "batch": settings.batch,
                "precision": self.precision,
                "optimizer": "AdamW, its defaults",
                "rows": len(rows),
            },
        )

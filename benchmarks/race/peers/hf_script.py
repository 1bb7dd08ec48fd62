"""Pre-training with transformers' Trainer as its documentation shows it: python hf_script.py FOLDER

FOLDER holds task.json and rows.npy (rows, length). A line "step N" comes as each optimizer step ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Rows(torch.utils.data.Dataset):
    """Packed rows; the model shifts the labels itself."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row, as input and as labels."""
        row = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


class Keep(TrainerCallback):
    """Tells of every step, and writes the weights after some."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.folder, self.steps = folder, set(steps)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **more: Any) -> None:
        """The line first: what comes before the next one is the save."""
        print(f"step {state.global_step}", flush=True)
        if state.global_step in self.steps:
            more["model"].save_pretrained(self.folder / f"step{state.global_step}")


def main(folder: Path) -> None:
    """Train for one epoch, as the folder's task.json says."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.manual_seed(42)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **task["shape"],
            norm_topk_prob=True,
            tie_word_embeddings=True,
            output_router_logits=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=task["batch"],
        learning_rate=task["learning_rate"],
        bf16=task["bf16"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=50,
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(np.load(folder / "rows.npy")),
        callbacks=[Keep(folder, task["kept"])],
    ).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

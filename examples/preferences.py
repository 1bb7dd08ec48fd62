"""Train an exported model on preferences (DPO) with LoRA adapters, by trl and peft.

pip install -r requirements-examples.txt
python -m examples.preferences --model runs/demo-chat/model --preferences pairs.jsonl --output runs/demo-dpo
python diagnose.py --checkpoint runs/demo-dpo --data data/...
python export.py --checkpoint runs/demo-dpo --gguf demo-dpo.gguf

A line of the file is {"prompt": "...", "chosen": "...", "rejected": "..."}, three texts or three lists of messages. The
adapters are merged into the weights at the end, so that everything that reads a model of ours reads the result.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "training_text.json",
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]  # experts and their router stay as they are


def as_messages(row: dict) -> dict:
    """Return a row whose texts are messages, to which trl applies the chat template of the folder."""

    def turns(value: str | list, role: str) -> list:
        return [{"role": role, "content": value}] if isinstance(value, str) else value

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: turns(row[name], role) for name, role in roles.items()}


def main(argv: list[str] | None = None) -> None:
    """Train, merge and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with config.json and model.safetensors")
    add("--preferences", required=True, help="JSON Lines with prompt, chosen and rejected")
    add("--output", type=Path, required=True, help="new folder; the model goes into OUTPUT/model")
    add("--steps", type=int, default=100, help="(%(default)s)")
    add("--batch_size", type=int, default=8, help="pairs a step (%(default)s)")
    add("--learning_rate", type=float, default=1e-4, help="(%(default)s)")
    add("--beta", type=float, default=0.1, help="how closely to keep to the model as it was (%(default)s)")
    add("--rank", type=int, default=8, help="of the adapters (%(default)s)")
    args = parser.parse_args(argv)
    folder = args.output / "model"
    if folder.exists():
        parser.error(f"--output {args.output}: holds a model already; give a new folder")

    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    data = load_dataset("json", data_files=args.preferences, split="train")
    settings = DPOConfig(
        output_dir=str(args.output / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        beta=args.beta,
        logging_steps=max(1, args.steps // 10),
        save_strategy="no",
        report_to="none",
        bf16=False,  # trl would switch it on, and a T4 has none
        gradient_checkpointing=False,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        args=settings,
        train_dataset=data.map(as_messages, remove_columns=data.column_names),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=ATTENTION, task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(folder)
    for name in KEPT:
        if (args.model / name).is_file():
            shutil.copyfile(args.model / name, folder / name)
    print(f"saved to {folder}")


if __name__ == "__main__":
    main()

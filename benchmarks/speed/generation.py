"""Tokens a second of `model.generate` beside those of transformers' `generate`, from one exported folder.

The same weights (random, of a fixed seed), prompts, number of new tokens, precision and threads; both keep keys and
values; the prompt's pass counts. The two take turns, and each one's best round is taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import Skip
from model import CausalLM, ModelConfig, load_model, save_model
from model.init import init_weights
from training.config.command_line import positive

NAME = "generation"
SEED = 0
PROMPT_TOKENS = 16
# ten times as large as in training where they matter most: text of one repeated token would make any two agree
WEIGHTS: dict[str, Any] = {"initializer_range": 0.1}
SHAPES = {
    "demo": ModelConfig(
        vocab_size=2000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
        moe_intermediate_size=176,
        **WEIGHTS,
    ),
    "default": ModelConfig(**WEIGHTS),
    "dense": ModelConfig(use_moe=False, **WEIGHTS),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this part."""
    add = parser.add_argument
    add("--generation_tokens", type=positive, default=128, metavar="N", help="new tokens a text (%(default)s)")
    add("--generation_rounds", type=positive, default=3, metavar="N", help="turns of each side (%(default)s)")
    add("--generation_threads", type=positive, default=torch.get_num_threads(), metavar="N", help="(%(default)s)")
    add("--generation_shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="(all)")


@dataclass(frozen=True)
class Setting:
    """What is written, and how."""

    shape: str
    precision: str
    batch: int
    sampled: bool

    def options(self) -> dict[str, Any]:
        """As both `generate`s take them."""
        return SAMPLED if self.sampled else GREEDY


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Every shape, precision, batch of 1 and 16, greedy and sampled: tokens/s of both, and whether texts agree."""
    try:
        import transformers
    except ImportError:
        raise Skip("transformers is not installed: pip install -r requirements-dev.txt") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(flags.generation_threads)
    started, rows = time.monotonic(), []
    try:
        for shape in flags.generation_shapes:
            folder = _export(work, shape)
            for precision, dtype in PRECISIONS.items():
                ours = load_model(folder, dtype=dtype)
                theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
                for batch in (1, 16):
                    for sampled in (False, True):
                        setting = Setting(shape, precision, batch, sampled)
                        rows.append(_compare(ours, theirs, setting, flags))
                        say(f"{_named(rows[-1])}: {rows[-1]['ratio']:.2f} times transformers")
    finally:
        torch.set_num_threads(before)
    return {
        "rows": rows,
        "new_tokens": flags.generation_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "rounds": flags.generation_rounds,
        "threads": flags.generation_threads,
        "transformers": transformers.__version__,
        "seconds": round(time.monotonic() - started, 1),
    }


def _export(work: Path, shape: str) -> Path:
    config, folder = SHAPES[shape], work / "generation" / shape
    model = CausalLM(config)
    init_weights(model, config, SEED)
    save_model(folder, config, model.state_dict())
    return folder


def _compare(ours: CausalLM, theirs: Any, setting: Setting, flags: argparse.Namespace) -> dict[str, Any]:
    """One row of the result."""
    count = flags.generation_tokens
    ids = torch.randint(
        3, ours.config.vocab_size, (setting.batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(SEED)
    )
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours.generate(ids, max_new_tokens=count, eos_token_id=-1, **setting.options()),
        "theirs": lambda: theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **setting.options(),
        ),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    texts: dict[str, Tensor] = {}
    for generate in sides.values():
        generate()  # to warm up
    for _ in range(flags.generation_rounds):
        for side, generate in sides.items():
            start = time.perf_counter()
            texts[side] = generate()
            seconds[side].append(time.perf_counter() - start)
    row = {"shape": setting.shape, "precision": setting.precision, "batch": setting.batch, "sampled": setting.sampled}
    for side, times in seconds.items():
        row[f"{side}_tokens_per_second"] = round(setting.batch * count / min(times), 1)
        row[f"{side}_seconds"] = [round(one, 4) for one in times]
    row["ratio"] = round(min(seconds["theirs"]) / min(seconds["ours"]), 3)
    if not setting.sampled:
        row |= agreement(texts["ours"], texts["theirs"], ours)
    return row


def agreement(ours: Tensor, theirs: Tensor, model: CausalLM) -> dict[str, Any]:
    """How many rows of (B, T) ids are the same, and the widest gap where two part.

    `widest_gap` is by how much the one token's logit exceeds the other's in our model, read without a cache, at the
    first place where a row differs; it is rounding if it is about the precision of a logit.
    """
    widest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        apart = (one != other).nonzero()
        if len(apart):
            place = int(apart[0])
            with torch.no_grad():
                logits = model.logits(one[None, :place], last_only=True)[0, -1].float()
            widest = max(widest, float((logits[one[place]] - logits[other[place]]).abs()))
    same = int((ours == theirs).all(-1).sum())
    return {
        "same_rows": same,
        "rows": len(ours),
        "widest_gap": round(widest, 6),
        "different_tokens": len(set(ours[0].tolist())),
    }


def _named(row: dict[str, Any]) -> str:
    return f"{row['shape']} {row['precision']} batch {row['batch']} {'sampled' if row['sampled'] else 'greedy'}"


def table(result: dict[str, Any]) -> list[str]:
    """Return the results as lines of Markdown."""
    lines = [
        f"{result['new_tokens']} new tokens after {result['prompt_tokens']}, {result['threads']} threads, best of "
        f"{result['rounds']} rounds, transformers {result['transformers']}",
        "",
        "| model | precision | batch | choice | tokens/s | transformers | ratio | greedy text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["sampled"]:
            text = "-"
        elif row["same_rows"] == row["rows"]:
            text = "the same"
        else:
            text = f"{row['same_rows']} of {row['rows']} rows the same; parted at a gap of {row['widest_gap']:.2g}"
        lines.append(
            f"| {row['shape']} | {row['precision']} | {row['batch']} | "
            f"{'sampled' if row['sampled'] else 'greedy'} | {row['ours_tokens_per_second']:,.0f} | "
            f"{row['theirs_tokens_per_second']:,.0f} | {row['ratio']:.2f} | {text} |"
        )
    return lines

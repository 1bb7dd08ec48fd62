"""What a run says of itself before its first step and after its last, to the user and in files beside the model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from common.files import size_of
from corpus.report import loss_to_beat
from model import count_parameters
from training.checkpointing import disk
from training.context import RunContext
from training.monitoring.progress import human_time

if TYPE_CHECKING:
    from training.trainer import Trainer


def announce(context: RunContext) -> None:
    """What was chosen, a line a fact; ds_config.json (resolved) and run.json keep it."""
    config, resolved, console = context.config, context.resolved, context.console
    total, active = count_parameters(config)
    kind = f"{config.num_experts} experts, {config.num_experts_per_tok} a token" if config.use_moe else "dense"
    console.say(
        f"model: {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active a token ({kind}, hidden "
        f"{config.hidden_size}, {config.num_hidden_layers} layers, vocabulary {config.vocab_size:,})"
    )
    for note in resolved.notes:
        console.say(f"  {note}")
    console.say(
        f"training: {resolved.total_steps:,} steps of {resolved.train_batch} x {context.options.max_seq_len} "
        f"tokens, {resolved.precision}, ZeRO-{resolved.zero_stage}, {resolved.optimizer_name}"
    )
    console.say(f"loss to beat: {loss_to_beat(context.corpus.manifest)}")
    if context.world.rank == 0 and not context.options.preflight:
        _write_record(context)


def _write_record(context: RunContext) -> None:
    say, resolved = context.console.say, context.resolved
    disk.write_text(context.output / "ds_config.json", json.dumps(resolved.config, indent=2) + "\n", say)
    flags = {name: value for name, value in asdict(context.options).items() if name != "model"}
    record = {
        "command": sys.argv,
        "flags": flags,
        "model": asdict(context.config),
        "corpus": str(context.corpus.folder),
    }
    text = json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n"
    disk.write_text(context.output / "run.json", text, say)


def room_on_disk(context: RunContext) -> str:
    """What the run takes on the disk, for people; UserError if there is too little of it."""
    existing = size_of(context.checkpoints) + size_of(context.output / "model")
    return disk.check_room(
        context.output,
        disk.checkpoint_bytes(context.config, context.resolved),
        disk.model_bytes(context.config, context.resolved),
        context.options.keep_last,
        existing,
    )


def sum_up(trainer: Trainer, reason: str) -> None:
    """summary.json, and the last lines that the user reads; `reason` is why the run ended."""
    context, state, last = trainer.context, trainer.state, trainer.last_evaluation
    tokens = state.step * context.tokens_per_step
    summary = {
        "reason": reason,
        "steps": state.step,
        "total_steps": trainer.total_steps,
        "tokens": tokens,
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(tokens / state.seconds) if state.seconds else None,
        "val_loss": last.loss if last else None,
        "val_bits_per_byte": last.bits_per_byte if last else None,
        "best_val_loss": state.best_loss,
        "best_step": state.best_step,
        "token_entropy": context.corpus.manifest.entropy_nats,
        "unigram_loss": context.unigram,
        "skipped_steps": int(trainer.engine.skipped_steps),
        "alarms": state.alarms,
    }
    console = context.console
    disk.write_text(context.output / "summary.json", json.dumps(summary, indent=2) + "\n", console.say)
    console.say(
        f"{reason}: {state.step:,} of {trainer.total_steps:,} steps, {tokens / 1e6:.2f} M tokens in "
        f"{human_time(state.seconds)} of training"
    )
    if state.best_loss is not None:
        console.say(
            f"best validation loss {state.best_loss:.3f} at step {state.best_step:,}, beside "
            f"{context.unigram:.3f} for token frequencies alone"
        )
    console.say(
        f"model: {context.output}/model   curves: tensorboard --logdir {context.output}/tensorboard   "
        f"verdict: python diagnose.py --checkpoint {context.output}"
    )
    if not state.finished:
        console.say(
            "the same command continues the run"
            if context.options.resume == "auto"
            else "the same command with --resume auto continues the run"
        )

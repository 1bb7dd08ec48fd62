"""What a run says of itself before its first step and after its last, to the user and in files beside the model."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version

from common.console import human_time
from corpus.report import loss_to_beat
from evaluation.run_record import finite, read_run
from evaluation.run_settings import TextFacts, settings_of, text_facts
from exporting.hugging_face import write_card
from model import count_parameters
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import dispensable, write_text
from training.context import RunContext
from training.evaluation.validation import Evaluation

FIGURES = ("best_val_loss", "val_loss", "val_bits_per_byte", "tokens_per_second", "steps")
"""Of summary.json: what HParams shows, which has room for five."""


def announce(context: RunContext) -> None:
    """Say what was chosen, a line a fact; ds_config.json (resolved) and run.json keep it."""
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
    write_text(context.output / "ds_config.json", json.dumps(resolved.config, indent=2) + "\n", say)
    flags = {name: value for name, value in asdict(context.options).items() if name != "model"}
    record = {
        "command": sys.argv,
        "flags": flags,
        "model": asdict(context.config),
        "corpus": str(context.corpus.folder),
        "text": TextFacts.of(context.corpus.manifest).model_dump(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "deepspeed")},
        },
        "device": context.device.summary,
        "processes": context.world.size,
    }
    text = json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n"
    write_text(context.output / "run.json", text, say)
    _write_hparams(context)


def sum_up(
    context: RunContext, state: RunState, reason: str, *, evaluation: Evaluation | None, skipped_steps: int
) -> None:
    """Write summary.json, and the last lines that the user reads; `reason` is why the run ended."""
    total_steps = context.resolved.total_steps
    tokens = state.step * context.tokens_per_step
    summary = {
        "reason": reason,
        "steps": state.step,
        "total_steps": total_steps,
        "tokens": tokens,
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(tokens / state.seconds) if state.seconds else None,
        "val_loss": evaluation.loss if evaluation else None,
        "val_bits_per_byte": evaluation.bits_per_byte if evaluation else None,
        "best_val_loss": state.best_loss,
        "best_step": state.best_step,
        "token_entropy": context.corpus.manifest.entropy_nats,
        "unigram_loss": context.unigram,
        "skipped_steps": skipped_steps,
        "alarms": state.alarms,
    }
    console = context.console
    write_text(context.output / "summary.json", json.dumps(summary, indent=2) + "\n", console.say)
    _write_hparams(context)
    _write_card(context)
    console.say(
        f"{reason}: {state.step:,} of {total_steps:,} steps, {tokens / 1e6:.2f} M tokens in "
        f"{human_time(state.seconds)} of training"
    )
    if state.best_loss is not None:
        console.say(
            f"best validation loss {state.best_loss:.3f} at step {state.best_step:,}, beside "
            f"{context.unigram:.3f} for token frequencies alone"
        )
    console.say(
        f"model: {context.output}/model   curves: tensorboard --logdir {context.output}   "
        f"verdict: python diagnose.py --checkpoint {context.output}"
    )
    if not state.finished:
        console.say(
            "the same command continues the run"
            if context.options.resume == "auto"
            else "the same command with --resume auto continues the run"
        )


def _write_hparams(context: RunContext) -> None:
    """Write what TensorBoard's page HParams has of the run: its settings, and the figures of summary.json, if any."""
    if not (context.resolved.config.get("tensorboard") or {}).get("enabled"):
        return
    from training.monitoring.tensorboard_pages import write_hparams  # TensorBoard takes as long as all of this package

    record = read_run(context.output)
    figures = {name: value for name in FIGURES if finite(value := record.summary.get(name))}
    with dispensable(f"{context.output} has no figures for HParams", context.console.say):
        write_hparams(context.output, settings_of(record, text_facts(record)), figures, record.steps)


def _write_card(context: RunContext) -> None:
    """Write model/README.md from the records of the run, so that whoever gets the folder knows what it is."""
    folder = context.output / "model"
    if (folder / "config.json").is_file():
        with dispensable(f"{folder} has no new model card", context.console.say):
            write_card(folder, context.output, context.config.for_inference())

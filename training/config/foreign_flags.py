"""Command lines as DeepSpeed's and Hugging Face's documents, nanoGPT and MiniMind write them, in train.py's words.

A flag with another name becomes ours; one that says what stands in the DeepSpeed JSON becomes a --set; what has no
equal here is answered with what to do instead. Every change is a line for the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from common.errors import UserError
from common.files import printable

_BATCH, _ACCUMULATION = "train_batch_size", "gradient_accumulation_steps"
_RENAMED = {
    "output": "output_dir out_dir save_dir",
    "data": "train_file train_files data_path dataset dataset_name train_data",
    "init_from": "model_name_or_path",
    "tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path",
    "epochs": "num_train_epochs num_epochs",
    "max_steps": "max_iters max_train_steps train_iters num_steps",
    "log_interval": "logging_steps log_steps",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps checkpoint_interval",
    "keep_last": "save_total_limit",
    "max_seq_len": "max_seq_length block_size seq_len seq_length cutoff_len model_max_length",
    "deepspeed_config": "ds_config",
    "hidden_size": "dim n_embd",
    "num_hidden_layers": "n_layer n_layers num_layers",
    "num_attention_heads": "n_head n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_experts": "n_routed_experts",
}
_KEYS = {
    "optimizer.params.lr": "learning_rate lr",
    "optimizer.params.weight_decay": "weight_decay",
    "optimizer.params.eps": "adam_epsilon",
    "gradient_clipping": "max_grad_norm grad_clip clip_grad",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "zero_optimization.stage": "zero_stage",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size micro_batch_size batch_size",
    _ACCUMULATION: "accumulation_steps grad_accum_steps",
    _BATCH: "global_batch_size",
}
_SCHEDULES = {
    "constant": None,
    "constant_with_warmup": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
    "linear": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto", "total_num_steps": "auto"}},
    "cosine": {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "cos_min_ratio": 0.0}},
}
_MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet", "comet": "comet"}
_IGNORED = "do_train do_eval do_predict deepspeed_mpi ddp"  # what train.py does anyway, or the launcher knows
_HINTS = {
    "per_device_eval_batch_size": "evaluations take the micro-batch of the JSON",
    "warmup_ratio": 'scheduler.params.warmup_num_steps counts steps; "auto" is 500, or a tenth of a shorter run',
    "adam_beta1": "write --set optimizer.params.betas=[0.9,0.95]",
    "adam_beta2": "write --set optimizer.params.betas=[0.9,0.95]",
    "optim": 'write it as the JSON\'s block, e.g. --set optimizer=\'{"type":"AdamW","params":{"lr":2e-4}}\'',
    "overwrite_output_dir": "--resume never starts anew, and keeps what an earlier run without checkpoints left",
    "gradient_checkpointing": "activations are not recomputed; a smaller train_micro_batch_size_per_gpu saves memory",
    "report_to": f"it can be none or some of {', '.join(_MONITORS)}",
    "lr_scheduler_type": f"it can be {', '.join(_SCHEDULES)}; --set scheduler.type has DeepSpeed's others",
    "mode": "what the data holds decides: text pretrains, conversations fine-tune (docs/chat.md); leave it out",
    "stage": "what the data holds decides; ZeRO's is --set zero_optimization.stage=2",
    "device": "the GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it",
    "no_cuda": "the GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it",
    "use_cpu": "the GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it",
    "compile": "nothing is compiled; leave it out",
    "torch_compile": "nothing is compiled; leave it out",
    "tf32": "leave it out: the precision is fp16 or bf16 of the JSON",
    "num_workers": "batches are read from memory-mapped shards, without worker processes; leave it out",
    "dataloader_num_workers": "batches are read from memory-mapped shards, without worker processes; leave it out",
    "num_gpus": "it belongs to the launcher: deepspeed --num_gpus 2 train.py ...",
    "nproc_per_node": "it belongs to the launcher: torchrun --nproc_per_node 2 train.py ...",
    "min_lr": "the floor is a share of the peak: --set scheduler.params.cos_min_ratio=0.1",
}


class _Flag(NamedTuple):
    """A flag of the command line that is not ours as it is written."""

    written: str
    name: str
    value: str | None


Taken = Callable[[_Flag, Callable[[str], str | None]], Sequence[str]]


def translate(argv: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the command line in our flags, whose names are `own`, and a line for each that was taken as another.

    UserError names those that mean something which train.py does not have. What nobody knows stays for the parser.
    """
    result: list[str] = []
    sets: list[str] = []  # before every --set of the user, which wins; that of a whole block before those of its keys
    lines: list[str] = []
    problems: list[str] = []
    words = list(argv)

    def other(names: str) -> str | None:
        """Return the value of the first of some other flags on this command line."""
        found = (_flag(words, place)[0] for place in range(len(words)) if words[place].startswith("--"))
        return next((flag.value for flag in found if flag.name in names.split()), None)

    place = 0
    while place < len(words):
        flag, after = _flag(words, place) if words[place].startswith("--") else (None, place + 1)
        if flag is None or flag.written.partition("=")[0][2:] in own or (new := _taken(flag, own, other)) is None:
            result.append(words[place])
            place += 1
            continue
        place = after if flag.value is not None else place + 1
        shown = flag.written if "=" in flag.written or flag.value is None else f"{flag.written} {flag.value}"
        if isinstance(new, str):
            problems.append(f"--{flag.name}: {new}")
        else:
            into = sets if "--set" in new else result
            into[:] = new + into if flag.name == "lr_scheduler_type" else into + new
            what = " ".join(word for word in new if word != "--set")
            lines.append(f"{printable(shown)}: " + (f"taken as {printable(what)}" if what else "so it is anyway"))
    if problems:
        raise UserError("\n".join(f"there is no {problem}" for problem in dict.fromkeys(problems)))
    return sets + result, lines


def _flag(words: Sequence[str], place: int) -> tuple[_Flag, int]:
    """Return the flag at `place` with its value, if it has one, and the place of the next word after both."""
    written, equals, value = words[place].partition("=")
    name = written[2:].replace("-", "_")
    if equals:
        return _Flag(words[place], name, value), place + 1
    if place + 1 < len(words) and not words[place + 1].startswith("--"):
        return _Flag(written, name, words[place + 1]), place + 2
    return _Flag(written, name, None), place + 1


def _taken(flag: _Flag, own: Collection[str], other: Callable[[str], str | None]) -> list[str] | str | None:
    """Return what stands for a flag in our words, or why it cannot be taken; None if it is not known."""
    name, value = flag.name, flag.value
    if name in own:  # with dashes in the place of underscores
        return [f"--{name}"] if value is None else [f"--{name}", value]
    if name in _IGNORED.split() or (name == "deepspeed" and value is None) or (name, value) == ("mode", "pretrain"):
        return []
    if name == "deepspeed":
        return ["--deepspeed_config", str(value)]
    for mine, names in _RENAMED.items():
        if name in names.split():
            return [f"--{mine}"] if value is None else [f"--{mine}", value]
    found = _of_json(name, value, other)
    return found if found is not None else _HINTS.get(name)


def _of_json(name: str, value: str | None, other: Callable[[str], str | None]) -> list[str] | None:
    """Return the --set for a flag that says what stands in the JSON."""
    if name == "resume_from_checkpoint":
        return ["--resume", "auto" if (value or "true").lower() == "true" else str(value)]
    if name in ("fp16", "bf16", "dtype"):
        on = name if name != "dtype" else {"float16": "fp16", "bfloat16": "bf16"}.get(value or "", value or "")
        enabled = name == "dtype" or (value or "true").lower() not in ("false", "0")
        each = {kind: kind == on and enabled for kind in ("fp16", "bf16")}
        return _set({f"{kind}.enabled": value for kind, value in each.items() if enabled or kind == name})
    if value is None:
        return _set({"wandb.enabled": True}) if name == "use_wandb" else None
    if name == "lr_scheduler_type" and value in _SCHEDULES:
        block = _SCHEDULES[value]
        warmup = {"warmup_num_steps": "auto", "warmup_type": "linear"}
        return _set({"scheduler": block and {"type": block["type"], "params": {**block["params"], **warmup}}})
    if name == "report_to":
        names = [] if value == "none" else value.split(",")
        blocks = {
            block: block in [_MONITORS.get(each) for each in names] for block in ("tensorboard", "wandb", "comet")
        }
        known = all(each in _MONITORS for each in names)
        return _set({f"{b}.enabled": on for b, on in blocks.items() if on or b == "tensorboard"}) if known else None
    if name == "warmup_iters":
        each = other("accumulation_steps") or "1"  # MiniMind, the only one with that flag, counts micro-batches
        steps = int(value) // max(1, int(each)) if value.isdigit() and each.isdigit() else value
        return _set({"scheduler.params.warmup_num_steps": steps})
    key = next((key for key, names in _KEYS.items() if name in (key, *names.split())), None)
    if key is None:
        return None
    # of the three sizes of a batch two are enough, and those in the file would contradict the one given
    auto = {_BATCH: _ACCUMULATION, _ACCUMULATION: _BATCH, "train_micro_batch_size_per_gpu": _BATCH}.get(key)
    given = other(f"{auto} {_KEYS[auto]}") if auto else None
    return _set({key: value} | ({auto: "auto"} if auto and given is None else {}))


def _set(values: Mapping[str, object]) -> list[str]:
    return [
        word
        for key, value in values.items()
        for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]

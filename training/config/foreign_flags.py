"""Command lines as DeepSpeed's and Hugging Face's documents, nanoGPT and MiniMind write them, in train.py's words.

A flag with another name becomes ours; one that says what stands in the DeepSpeed JSON becomes a --set; what has no
equal here is answered with what to do instead. Every change is a line for the user.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from common.errors import UserError
from common.files import printable

_BATCH, _ACCUMULATION = "train_batch_size", "gradient_accumulation_steps"
_FLAGS = {
    "output": "output_dir out_dir save_dir",
    "data": "train_file train_files data_path dataset dataset_name train_data",
    "init_from": "model_name_or_path",
    "resume": "resume_from_checkpoint",
    "tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path",
    "seed": "random_seed",
    "epochs": "num_train_epochs num_epochs max_epochs",
    "max_steps": "max_iters max_train_steps train_iters num_steps",
    "log_interval": "logging_steps log_steps",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps checkpoint_interval",
    "keep_last": "save_total_limit",
    "max_seq_len": "max_seq_length block_size seq_len seq_length cutoff_len model_max_length",
    "deepspeed_config": "ds_config deepspeed",
    "hidden_size": "dim n_embd",
    "num_hidden_layers": "n_layer n_layers num_layers",
    "num_attention_heads": "n_head n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_experts": "n_routed_experts",
    "ep_size": "expert_parallel_size moe_expert_parallel_size",
}
_KEYS = {
    "optimizer.params.lr": "learning_rate lr",
    "optimizer.params.weight_decay": "weight_decay wd",
    "optimizer.params.eps": "adam_epsilon",
    "gradient_clipping": "max_grad_norm grad_clip clip_grad",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "zero_optimization.stage": "zero_stage",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size micro_batch_size batch_size",
    _ACCUMULATION: "accumulation_steps grad_accum_steps",
    _BATCH: "global_batch_size",
    "wandb.project": "wandb_project",
}
_SCHEDULES = {
    "constant": None,
    "constant_with_warmup": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
    "linear": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto", "total_num_steps": "auto"}},
    "cosine": {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "cos_min_ratio": 0.0}},
}
_MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet", "comet": "comet"}
_PRECISIONS = {
    **dict.fromkeys(("fp16", "float16", "16-mixed"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16", "bf16-mixed"), "bf16"),
    **dict.fromkeys(("fp32", "float32", "no", "32"), "fp32"),
}
_DTYPES = ("dtype", "torch_dtype", "precision", "mixed_precision")
_IGNORED = ("do_train", "do_eval", "do_predict", "deepspeed_mpi", "ddp")  # it does so anyway, or the launcher knows
_OPTIMIZER = 'write it as the JSON\'s block, e.g. --set optimizer=\'{"type":"AdamW","params":{"lr":2e-4}}\''
_LAUNCHER = ("num_nodes", "node_rank", "hostfile", "include", "exclude", "master_addr", "master_port")
_HINTS = {
    "per_device_eval_batch_size": "evaluations take the micro-batch of the JSON",
    "warmup_ratio": 'scheduler.params.warmup_num_steps counts steps; "auto" is 500, or a tenth of a shorter run',
    "adam_beta1": "write --set optimizer.params.betas=[0.9,0.95]",
    "adam_beta2": "write --set optimizer.params.betas=[0.9,0.95]",
    **dict.fromkeys(("optim", "optimizer"), _OPTIMIZER),
    "overwrite_output_dir": "--resume never starts anew, and keeps what an earlier run without checkpoints left",
    "gradient_checkpointing": "activations are not recomputed; a smaller train_micro_batch_size_per_gpu saves memory",
    "report_to": f"it can be none or some of {', '.join(_MONITORS)}; docs/experiments.md has SwanLab and trackio",
    "lr_scheduler_type": f"it can be {', '.join(_SCHEDULES)}; --set scheduler.type has DeepSpeed's others",
    "lr_decay_style": f"--lr_scheduler_type can be {', '.join(_SCHEDULES)}",
    "total_batch_size": "--global_batch_size counts rows, of --max_seq_len tokens each",
    "from_weight": "--init_from begins with the weights of a run",
    "from_resume": "a run that is in --output continues by itself; --resume says otherwise",
    "mode": "what the data holds decides: text pretrains, conversations fine-tune (docs/chat.md); leave it out",
    "stage": "what the data holds decides; ZeRO's is --set zero_optimization.stage=2",
    **dict.fromkeys(("device", "no_cuda", "use_cpu"), "a GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it"),
    **dict.fromkeys(("compile", "torch_compile"), "nothing is compiled; leave it out"),
    **dict.fromkeys(_DTYPES, f"it can be {', '.join(_PRECISIONS)}"),
    **dict.fromkeys(("tf32", "amp", "fp16_opt_level"), "leave it out: the precision is fp16 or bf16 of the JSON"),
    **dict.fromkeys(
        ("num_workers", "dataloader_num_workers"),
        "batches are read from memory-mapped shards, without worker processes; leave it out",
    ),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy"),
        "intervals count steps: --eval_interval, --save_interval, --log_interval",
    ),
    **dict.fromkeys(
        ("run_name", "logging_dir"), "a run is called after its folder, --output, and TensorBoard's files lie in it"
    ),
    **dict.fromkeys(
        ("offload", "cpu_offload", "offload_optimizer", "offload_optimizer_device", "offload_param_device"),
        "nothing is offloaded; a smaller train_micro_batch_size_per_gpu, or more processes under ZeRO-2, saves memory",
    ),
    "num_gpus": "it belongs to the launcher: deepspeed --num_gpus 2 train.py ...",
    **{name: f"it belongs to the launcher: deepspeed --{name} ... train.py ..." for name in _LAUNCHER},
    "nproc_per_node": "it belongs to the launcher: torchrun --nproc_per_node 2 train.py ...",
    "min_lr": "the floor is a share of the peak: --set scheduler.params.cos_min_ratio=0.1",
}


_OURS = {name: ours for ours, names in _FLAGS.items() for name in names.split()}
_JSON = {name: key for key, names in _KEYS.items() for name in (key, *names.split())}
_OTHERS = ("fp16", "bf16", *_DTYPES, "use_wandb", "report_to", "lr_scheduler_type", "warmup_iters")


def translate(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command line in our flags, and a line for each that was taken as another.

    UserError names those that mean something which train.py does not have. What nobody knows stays for the parser.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in dict.fromkeys((*_OURS, *_JSON, *_OTHERS, *_IGNORED, *_HINTS)):
        parser.add_argument(f"--{name}", nargs="*")
    found, words = parser.parse_known_args([_underscored(word) for word in argv])
    given: dict[str, list[str]] = vars(found)
    sets: list[str] = []  # before every --set of the user, which wins
    lines, problems = [], []
    for name, values in given.items():
        if name == "report_to":
            values = [",".join(values)] if values else []
        elif name not in _OURS:  # one value at most; what follows is left to the parser
            values, words = values[:1], words + values[1:]
        settings, flag = _settings(name, values[0] if values else None, given), _flag(name, values)
        if settings is None and flag is None:
            problems.append(_answer(name, values))
            continue
        new = [f"{key}={_written(value)}" for key, value in (settings or {}).items()]
        sets = new + sets if name == "lr_scheduler_type" else sets + new  # a whole block comes before its keys
        words += flag or []
        taken = " ".join(new + (flag or []))
        shown = printable(" ".join([f"--{name}", *values]))
        lines.append(f"{shown}: taken as {printable(taken)}" if taken else f"{shown}: so it is anyway")
    if problems:
        raise UserError("\n".join(problems))
    return [word for each in sets for word in ("--set", each)] + words, lines


def json_key(name: str) -> str | None:
    """Return where the value of a flag, ours or another trainer's, stands in the JSON, if anywhere."""
    ours = _OURS.get(name, name)
    return _JSON.get(name) or (f"bufudu.{ours}" if ours in _FLAGS and ours != "deepspeed_config" else None)


def _answer(name: str, values: list[str]) -> str:
    """Return what to do about a flag that means something which train.py does not have, or lacks its value."""
    if name in _OTHERS and values:  # with another value it would be taken
        return f"--{name} {printable(values[0])}: {_HINTS.get(name, 'not a value that it can have')}"
    refused = name in _HINTS and name not in _OTHERS
    return f"there is no --{name}: {_HINTS[name]}" if refused else f"--{name} needs a value"


def _underscored(word: str) -> str:
    """Return a flag as it is written here."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flag(name: str, values: list[str]) -> list[str] | None:
    """Return what stands for a flag on our command line, nothing if train.py does so anyway; None if nothing can."""
    if name in _IGNORED or (name == "deepspeed" and not values) or (name, values) == ("mode", ["pretrain"]):
        return []
    if name == "resume_from_checkpoint" and (not values or values[0].lower() == "true"):
        values = ["auto"]
    return [f"--{_OURS[name]}", *values] if name in _OURS else None


def _settings(name: str, value: str | None, given: Mapping[str, list[str]]) -> Mapping[str, object] | None:
    """Return the --set for a flag that says what stands in the JSON, beside the others that were `given`."""
    if name in ("fp16", "bf16") and value and value.lower() in ("false", "0"):
        return {f"{name}.enabled": False}
    if name in ("fp16", "bf16", *_DTYPES):
        on = _PRECISIONS.get(value or "") if name in _DTYPES else name
        return {f"{kind}.enabled": kind == on for kind in ("fp16", "bf16")} if on else None
    if name == "use_wandb":
        return {"wandb.enabled": (value or "true").lower() not in ("false", "0")}
    if value is None:
        return None
    if name == "lr_scheduler_type" and value in _SCHEDULES:
        block = _SCHEDULES[value]
        warmup = {"warmup_num_steps": "auto", "warmup_type": "linear"}
        return {"scheduler": block and {"type": block["type"], "params": {**block["params"], **warmup}}}
    if name == "report_to":
        names = [] if value == "none" else value.split(",")
        on = {f"{_MONITORS[each]}.enabled": True for each in names if each in _MONITORS}
        return {"tensorboard.enabled": False} | on if len(on) == len(names) else None
    if name == "warmup_iters":
        # MiniMind, the only one with that flag, counts micro-batches
        each = (given.get("accumulation_steps") or ["1"])[0]
        steps = int(value) // max(1, int(each)) if value.isdigit() and each.isdigit() else value
        return {"scheduler.params.warmup_num_steps": steps}
    if name not in _JSON:
        return None
    # of the three sizes of a batch two are enough, and those in the file would contradict the one given
    key = _JSON[name]
    third = {_BATCH: _ACCUMULATION, _ACCUMULATION: _BATCH, "train_micro_batch_size_per_gpu": _BATCH}.get(key)
    unsaid = third and not any(_JSON.get(other) == third for other in given)
    return {key: value} | ({third: "auto"} if third and unsaid else {})

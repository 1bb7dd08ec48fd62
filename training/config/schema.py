"""The keys of DeepSpeed's JSON: what it reads, of what kind each value is, and which may be "auto".

A table of our own because importing deepspeed costs seconds, and `--plan` should answer at once; a test compares it
with the installed DeepSpeed. DeepSpeed itself ignores most keys that it does not know, so that a slip of the pen would
train another recipe without a word.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Union


class Kind(NamedTuple):
    """What a value must be: in words for the message, and as a test."""

    words: str
    fits: Callable[[object], bool]


Schema = Mapping[str, Union[Kind, "Schema"]]

OWN_BLOCK = "bufudu"
"""The one block that is not DeepSpeed's: default flags of train.py for the runs of this file."""

AUTO = "auto"


def as_number(value: object) -> float | None:
    """`value` as a finite float, or None if it is no number; JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _number(test: Callable[[float], bool]) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        number = as_number(value)
        return number is not None and test(number)

    return fits


def _numbers(value: object) -> bool:
    return as_number(value) is not None or (
        isinstance(value, list) and bool(value) and all(as_number(item) is not None for item in value)
    )


def _betas(value: object) -> bool:
    below_one = _number(lambda number: 0 <= number < 1)
    return isinstance(value, list) and len(value) == 2 and all(below_one(item) for item in value)


def one_of(*choices: object) -> Kind:
    """The kind of a value with a fixed set of choices."""
    words = ", ".join("null" if choice is None else str(choice) for choice in choices)
    # "is" beside "==": in Python True == 1, in JSON a stage is no true
    return Kind(f"one of {words}", lambda value: any(value == c and type(value) is type(c) for c in choices))


_MOST = 2**53  # beyond it a float no longer counts in ones, and no batch or bucket is that large

BOOL = Kind("true or false (without quotes)", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number of at least 1", lambda value: type(value) is int and 1 <= value <= _MOST)
INDEX = Kind("a whole number of at least 0", lambda value: type(value) is int and 0 <= value <= _MOST)
# bucket sizes are often written 5e8, which JSON reads as a float
SIZE = Kind("a whole number of at least 1", _number(lambda number: 1 <= number <= _MOST and number == int(number)))
SPAN = Kind("a whole number of at least 0", _number(lambda number: 0 <= number <= _MOST and number == int(number)))
POSITIVE = Kind("a number above 0", _number(lambda number: number > 0))
NOT_NEGATIVE = Kind("a number of at least 0", _number(lambda number: number >= 0))
RATIO = Kind("a number from 0 to 1", _number(lambda number: 0 <= number <= 1))
NUMBER = Kind("a number", _number(lambda number: True))
NUMBERS = Kind("a number, or a list of numbers (one for each parameter group)", _numbers)
BETAS = Kind("two numbers from 0 to below 1, such as [0.9, 0.999]", _betas)
TEXT = Kind('a text in "quotes"', lambda value: isinstance(value, str))
BLOCK = Kind("a block in { }", lambda value: isinstance(value, dict))
ANY = Kind("anything", lambda value: True)
DTYPE = one_of("fp32", "fp16", "bf16")

_OFFLOAD_OPTIMIZER: Schema = {
    "device": one_of("none", "cpu", "nvme"),
    "nvme_path": TEXT,
    "buffer_count": INDEX,
    "pin_memory": BOOL,
    "pipeline_read": BOOL,
    "pipeline_write": BOOL,
    "fast_init": BOOL,
    "ratio": RATIO,
    "super_offload": BOOL,
    "cpuadam_cores_perc": RATIO,
}
_OFFLOAD_PARAM: Schema = {
    "device": one_of("none", "cpu", "nvme"),
    "nvme_path": TEXT,
    "buffer_count": INDEX,
    "buffer_size": SPAN,
    "max_in_cpu": SPAN,
    "pin_memory": BOOL,
}
# ZeRO-3's own numbers go by two names, with and without "stage3_"
_STAGE3: Schema = {
    "prefetch_bucket_size": SPAN,
    "param_persistence_threshold": SPAN,
    "model_persistence_threshold": SPAN,
    "max_live_parameters": SPAN,
    "max_reuse_distance": SPAN,
    "gather_16bit_weights_on_model_save": BOOL,
    "module_granularity_threshold": SPAN,
    "use_all_reduce_for_fetch_params": BOOL,
    "allgather_sequential": BOOL,
}
_ZERO: Schema = {
    "stage": one_of(0, 1, 2, 3),
    "contiguous_gradients": BOOL,
    "reduce_scatter": BOOL,
    "reduce_bucket_size": SIZE,
    "use_multi_rank_bucket_allreduce": BOOL,
    "allgather_partitions": BOOL,
    "allgather_bucket_size": SIZE,
    "overlap_comm": BOOL,
    "compute_grad_norm": BOOL,
    "load_from_fp32_weights": BOOL,
    "elastic_checkpoint": BOOL,
    "offload_param": _OFFLOAD_PARAM,
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
    "zenflow": BLOCK,
    "sub_group_size": SPAN,
    "ignore_unused_parameters": BOOL,
    "legacy_stage1": BOOL,
    "round_robin_gradients": BOOL,
    "parameter_alignment": BOOL,
    "zero_hpz_partition_size": SPAN,
    "zero_quantized_weights": BOOL,
    "zero_quantized_nontrainable_weights": BOOL,
    "zero_quantized_gradients": BOOL,
    "memory_efficient_linear": BOOL,
    "pipeline_loading_checkpoint": BOOL,
    "override_module_apply": BOOL,
    "log_trace_cache_warnings": BOOL,
    "enable_sanity_checks": BOOL,
    "save_muon_momentum_buffer_in_memory": BOOL,
    "leaf_module": BLOCK,
    **_STAGE3,
    **{f"stage3_{key}": kind for key, kind in _STAGE3.items()},
}

TOP: Schema = {
    "train_batch_size": COUNT,
    "train_micro_batch_size_per_gpu": COUNT,
    "gradient_accumulation_steps": COUNT,
    "gradient_clipping": NOT_NEGATIVE,
    # "params" of these two depend on "type": see optimizer_params and SCHEDULERS
    "optimizer": {"type": TEXT, "params": BLOCK, "legacy_fusion": BOOL},
    "scheduler": {"type": TEXT, "params": BLOCK},
    "fp16": {
        "enabled": BOOL,
        "auto_cast": BOOL,
        "loss_scale": NOT_NEGATIVE,
        "initial_scale_power": INDEX,
        "loss_scale_window": COUNT,
        "hysteresis": COUNT,
        "consecutive_hysteresis": BOOL,
        "min_loss_scale": COUNT,
        "fp16_master_weights_and_grads": BOOL,
    },
    "bf16": {
        "enabled": BOOL,
        "immediate_grad_update": BOOL,
        "check_grad_overflow": BOOL,
        "bf16_master_weights_and_grads": BOOL,
        "bf16_optimizer_states": BOOL,
    },
    "zero_optimization": _ZERO,
    "tensorboard": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "csv_monitor": {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT},
    "wandb": {"enabled": BOOL, "group": TEXT, "team": TEXT, "project": TEXT},
    "comet": {
        "enabled": BOOL,
        "samples_log_interval": COUNT,
        "project": TEXT,
        "workspace": TEXT,
        "api_key": TEXT,
        "experiment_name": TEXT,
        "experiment_key": TEXT,
        "online": BOOL,
        "mode": TEXT,
    },
    "activation_checkpointing": {
        "partition_activations": BOOL,
        "contiguous_memory_optimization": BOOL,
        "cpu_checkpointing": BOOL,
        "number_checkpoints": COUNT,
        "synchronize_checkpoint_boundary": BOOL,
        "profile": BOOL,
    },
    "torch_autocast": {"enabled": BOOL, "dtype": TEXT, "lower_precision_safe_modules": ANY},
    "data_types": {
        "grad_accum_dtype": DTYPE,
        "param_dtype": DTYPE,
        "buffer_dtype": DTYPE,
        "keep_in_fp32_modules": ANY,
    },
    "communication_data_type": DTYPE,
    "seq_parallel_communication_data_type": DTYPE,
    "prescale_gradients": BOOL,
    "gradient_predivide_factor": POSITIVE,
    "gradient_allreduce_op": one_of("mean", "sum"),
    "managed_gradient_accumulation": BOOL,
    "zero_allow_untested_optimizer": BOOL,
    "zero_force_ds_cpu_optimizer": BOOL,
    "steps_per_print": COUNT,
    "wall_clock_breakdown": BOOL,
    "memory_breakdown": BOOL,
    "dump_state": BOOL,
    "log_level": TEXT,
    "timers": BLOCK,
    "flops_profiler": BLOCK,
    "comms_logger": BLOCK,
    "checkpoint": BLOCK,
    "aio": BLOCK,
    "compile": BLOCK,
    "autotuning": BLOCK,
    "data_efficiency": BLOCK,
    "datastates_ckpt": BLOCK,
    "expert_parallel": BLOCK,
    "hybrid_engine": BLOCK,
    "pipeline": BLOCK,
    "tensor_parallel": BLOCK,
    "weight_quantization": BLOCK,
    "sequence_parallel_size": COUNT,
    "use_data_before_expert_parallelism": BOOL,
    "dataloader_drop_last": BOOL,
    "disable_allgather": BOOL,
    "disable_python_gc": BOOL,
    "vocabulary_size": COUNT,
}

_REMOVED = (
    "amp",
    "compression_training",
    "curriculum_learning",
    "eigenvalue",
    "elasticity",
    "graph_harvesting",
    "mics_hierarchical_params_gather",
    "mics_shard_size",
    "nebula",
    "progressive_layer_drop",
    "quantize_training",
    "sparse_attention",
    "sparse_gradients",
    "zeropp_loco_param",
)
# Names that were once right, or are right in another tool: what to write instead.
FORMER: Mapping[str, str] = {
    "bfloat16": 'DeepSpeed\'s older name of "bf16"',
    "max_grad_norm": 'DeepSpeed wants it at the top level, as "gradient_clipping"',
    "cpu_offload": '"offload_optimizer": {"device": "cpu"} by now',
    "cpu_offload_param": '"offload_param": {"device": "cpu"} by now',
    "cpu_offload_use_pin_memory": '"pin_memory" in "offload_optimizer" by now',
    "stage3_gather_fp16_weights_on_model_save": '"stage3_gather_16bit_weights_on_model_save" by now',
    "allgather_size": '"zero_optimization.allgather_bucket_size" by now',
    **dict.fromkeys(_REMOVED, "DeepSpeed has removed it"),
}

_ADAM: Schema = {"lr": POSITIVE, "betas": BETAS, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE, "amsgrad": BOOL}
# read by DeepSpeed itself, not by the optimizer
_ADAM_CHOICE: Schema = {"torch_adam": BOOL, "adam_w_mode": BOOL, "fp32_optimizer_states": BOOL}
_TORCH: Schema = {"foreach": BOOL, "maximize": BOOL, "differentiable": BOOL}
_TORCH_ADAM: Schema = {**_ADAM, **_ADAM_CHOICE, **_TORCH, "capturable": BOOL, "fused": BOOL}
_FUSED_ADAM: Schema = {**_ADAM, **_ADAM_CHOICE, "bias_correction": BOOL, "set_grad_none": BOOL}
_LION: Schema = {
    "lr": POSITIVE,
    "betas": BETAS,
    "weight_decay": NOT_NEGATIVE,
    "set_grad_none": BOOL,
    "fp32_optimizer_states": BOOL,
}
_MUON: Schema = {
    "lr": POSITIVE,
    "muon_lr": POSITIVE,
    "adam_lr": POSITIVE,
    "momentum": RATIO,
    "weight_decay": NOT_NEGATIVE,
    "ns_method": one_of("gram", "standard", "polar"),
    "per_head_muon": BOOL,
    "betas": BETAS,
    "eps": POSITIVE,
    **_ADAM_CHOICE,
    "foreach": BOOL,
}
_SGD: Schema = {
    "lr": POSITIVE,
    "momentum": RATIO,
    "dampening": NUMBER,
    "weight_decay": NOT_NEGATIVE,
    "nesterov": BOOL,
    "fused": BOOL,
    **_TORCH,
}
_ADAFACTOR: Schema = {
    "lr": POSITIVE,
    "beta2_decay": NUMBER,
    "eps": ANY,
    "d": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "foreach": BOOL,
    "maximize": BOOL,
}

# What DeepSpeed lets run under ZeRO as it is; any other needs "zero_allow_untested_optimizer".
ZERO_TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
# DeepSpeed takes these names in any case of letters, and others exactly as torch.optim spells them.
DEEPSPEED_OPTIMIZERS = ("adam", "adamw", "adagrad", "lamb", "lion", "muon", "muadam", "muadamw", "musgd")
TORCH_OPTIMIZERS = ("ASGD", "Adadelta", "Adafactor", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
OPTIMIZER_NAMES = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD", *TORCH_OPTIMIZERS)


def optimizer_params(name: str, params: Mapping[str, object]) -> Schema | None:
    """What `optimizer.params` may hold for this optimizer (`name` in small letters); None if we do not know."""
    if name in ("adam", "adamw"):
        return _TORCH_ADAM if params.get("torch_adam") is True else _FUSED_ADAM
    return {"muon": _MUON, "lion": _LION, "sgd": _SGD, "adafactor": _ADAFACTOR}.get(name)


_WARMUP: Schema = {
    "warmup_num_steps": COUNT,
    "warmup_type": one_of("linear", "log"),
    "last_batch_iteration": Kind("a whole number of at least -1", lambda value: type(value) is int and value >= -1),
}
SCHEDULERS: Mapping[str, Schema] = {
    "WarmupCosineLR": {"total_num_steps": COUNT, "warmup_min_ratio": RATIO, "cos_min_ratio": RATIO, **_WARMUP},
    "WarmupDecayLR": {"total_num_steps": COUNT, "warmup_min_lr": NUMBERS, "warmup_max_lr": NUMBERS, **_WARMUP},
    "WarmupLR": {"warmup_min_lr": NUMBERS, "warmup_max_lr": NUMBERS, **_WARMUP},
    "OneCycle": {
        "cycle_min_lr": NUMBERS,
        "cycle_max_lr": NUMBERS,
        "decay_lr_rate": NUMBER,
        "cycle_first_step_size": COUNT,
        "cycle_second_step_size": INDEX,
        "cycle_first_stair_count": INDEX,
        "cycle_second_stair_count": INDEX,
        "decay_step_size": INDEX,
        "cycle_momentum": BOOL,
        "cycle_min_mom": NUMBERS,
        "cycle_max_mom": NUMBERS,
        "decay_mom_rate": NUMBER,
        "last_batch_iteration": _WARMUP["last_batch_iteration"],
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": NUMBERS,
        "lr_range_test_step_size": COUNT,
        "lr_range_test_step_rate": NUMBER,
        "lr_range_test_staircase": BOOL,
        "last_batch_iteration": _WARMUP["last_batch_iteration"],
    },
}

# The keys that train.py fills in where the file says "auto".
AUTO_KEYS = (
    "train_batch_size",
    "gradient_accumulation_steps",
    "scheduler.params.total_num_steps",
    "scheduler.params.warmup_num_steps",
    "bf16.enabled",
    "optimizer.params.ns_method",
    "tensorboard.output_path",
    "tensorboard.job_name",
    "csv_monitor.output_path",
    "csv_monitor.job_name",
)
# Blocks where "auto" is a word of DeepSpeed's own.
DEEPSPEED_AUTO = ("data_types.keep_in_fp32_modules", "pipeline", "zero_optimization.zenflow", "expert_parallel")


def known_paths(schema: Schema = TOP, prefix: str = "") -> Iterator[str]:
    """Every key of the table, dotted."""
    for key, kind in schema.items():
        yield prefix + key
        if isinstance(kind, Mapping):
            yield from known_paths(kind, f"{prefix}{key}.")


def _params_paths() -> Iterator[str]:
    for schema in (_TORCH_ADAM, _MUON):
        yield from (f"optimizer.params.{key}" for key in schema)
    for schema in SCHEDULERS.values():
        yield from (f"scheduler.params.{key}" for key in schema)


_EVERYWHERE = tuple(dict.fromkeys([*known_paths(), *_params_paths()]))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, if any is like it."""
    word, spelled = word.lower(), {each.lower(): each for each in known}
    found = difflib.get_close_matches(word, spelled, n=1, cutoff=0.6)
    # "path" for "output_path": too short to count as close, yet surely meant
    found = found or [each for each in spelled if len(word) >= 4 and word in each]
    return spelled[found[0]] if found else None


def nearest_key(path: str, siblings: Iterable[str]) -> str | None:
    """The dotted key that the unknown `path` was probably meant to be: in its own block, or its name elsewhere."""
    parent, _, name = path.rpartition(".")
    inside = nearest(name, siblings)
    if inside is not None:
        return f"{parent}.{inside}" if parent else inside
    leaves: dict[str, str] = {}
    for known in _EVERYWHERE:
        leaves.setdefault(known.rpartition(".")[2], known)
    found = nearest(name, leaves)
    # the same key may be one of another optimizer
    return leaves[found] if found and leaves[found] != path else None

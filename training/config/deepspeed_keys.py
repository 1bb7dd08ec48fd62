"""Every key of a DeepSpeed JSON file with the kind of its value, read from the installed DeepSpeed and PyTorch.

Keys of blocks come from DeepSpeed's pydantic models, those of optimizers and schedules from the signatures of their
constructors. Only the top level, which DeepSpeed reads key by key, is written out here; a test compares it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import torch
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor import config as monitor
from deepspeed.ops.adam import FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import FusedLion
from deepspeed.runtime import config, constants, lr_schedules, precision_config
from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
from deepspeed.utils.logging import log_levels
from pydantic import BaseModel

from training.config.value_kinds import (
    ANY,
    AT_LEAST_MINUS_1,
    BETAS,
    BLOCK,
    BOOL,
    COUNT,
    INDEX,
    NOT_NEGATIVE,
    NUMBER,
    NUMBERS,
    POSITIVE,
    POSITIVE_SIZE,
    RATIO,
    SIZE,
    TEXT,
    Kind,
    Schema,
)

_MODELS: dict[str, type[BaseModel]] = {
    "fp16": precision_config.DeepSpeedFP16Config,
    "bf16": precision_config.DeepSpeedBF16Config,
    "zero_optimization": DeepSpeedZeroConfig,
    "tensorboard": monitor.TensorBoardConfig,
    "csv_monitor": monitor.CSVConfig,
    "wandb": monitor.WandbConfig,
    "comet": monitor.CometConfig,
    "compile": config.CompileConfig,
    "hybrid_engine": config.HybridEngineConfig,
    "weight_quantization": config.WeightQuantConfig,
    "comms_logger": CommsLoggerConfig,
}
_DTYPE = ["fp32", "fp16", "bf16"]
_TOP_LEVEL: Schema = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), COUNT),
    "gradient_clipping": NOT_NEGATIVE,
    # what "params" may hold depends on "type"
    "optimizer": {"type": TEXT, "params": BLOCK, "legacy_fusion": BOOL},
    "scheduler": {"type": TEXT, "params": BLOCK},
    "torch_autocast": {"enabled": BOOL, "dtype": TEXT, "lower_precision_safe_modules": ANY},
    "data_types": {
        **dict.fromkeys(("grad_accum_dtype", "param_dtype", "buffer_dtype"), _DTYPE),
        "keep_in_fp32_modules": ANY,
    },
    **dict.fromkeys(("communication_data_type", "seq_parallel_communication_data_type"), _DTYPE),
    "gradient_predivide_factor": POSITIVE,
    "gradient_allreduce_op": [*constants.GRADIENT_ALLREDUCE_OP_SUPPORTED],
    **dict.fromkeys(("prescale_gradients", "managed_gradient_accumulation", "disable_allgather"), BOOL),
    **dict.fromkeys(("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), BOOL),
    **dict.fromkeys(("steps_per_print", "sequence_parallel_size", "vocabulary_size"), COUNT),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc"), BOOL),
    **dict.fromkeys(("use_data_before_expert_parallelism", "dataloader_drop_last"), BOOL),
    "log_level": [*log_levels],
    "flops_profiler": {
        **dict.fromkeys(("enabled", "detailed"), BOOL),
        **dict.fromkeys(("profile_step", "top_modules"), COUNT),
        "recompute_fwd_factor": NOT_NEGATIVE,
        "module_depth": AT_LEAST_MINUS_1,
        "output_file": TEXT,
    },
    "activation_checkpointing": {name: COUNT if value is None else BOOL for name, value in ACT_CHKPT_DEFAULT.items()},
    # blocks that change nothing here, or that train.py refuses (features.py): anything passes
    **dict.fromkeys(("checkpoint", "aio", "autotuning", "data_efficiency", "datastates_ckpt"), BLOCK),
    **dict.fromkeys(("expert_parallel", "pipeline", "tensor_parallel"), BLOCK),
}
# Stricter than DeepSpeed's models, which let a loss scale be 0 or less while it is not used
_STRICTER: Schema = {
    "loss_scale": NOT_NEGATIVE,
    **dict.fromkeys(("loss_scale_window", "hysteresis", "min_loss_scale", "samples_log_interval"), COUNT),
}
# Parameters of optimizers and schedules whose default value does not tell the kind
_PARAMETERS: dict[str, Kind] = {
    **dict.fromkeys(("lr", "muon_lr", "adam_lr", "eps", "d"), POSITIVE),
    **dict.fromkeys(("momentum", "warmup_min_ratio", "cos_min_ratio"), RATIO),
    **dict.fromkeys(("warmup_num_steps", "total_num_steps", "cycle_first_step_size", "lr_range_test_step_size"), COUNT),
    **dict.fromkeys(("cycle_second_step_size", "cycle_second_stair_count"), INDEX),
    **dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "cycle_min_lr", "cycle_max_lr"), NUMBERS),
    **dict.fromkeys(("cycle_min_mom", "cycle_max_mom", "lr_range_test_min_lr"), NUMBERS),
    **dict.fromkeys(("foreach", "fused", "torch_adam", "adam_w_mode", "fp32_optimizer_states", "per_head_muon"), BOOL),
    "dampening": NUMBER,
    "betas": BETAS,
    "weight_decay": NOT_NEGATIVE,
    "ns_method": ["gram", "standard", "polar"],
    "warmup_type": [lr_schedules.WARMUP_LINEAR_RATE, lr_schedules.WARMUP_LOG_RATE],
    "last_batch_iteration": AT_LEAST_MINUS_1,
}
_ADAM_CHOICE = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")  # read by DeepSpeed, not by the optimizer
_MUON = ("lr", "muon_lr", "adam_lr", "momentum", "weight_decay", "ns_method", "per_head_muon", "betas", "eps")
_UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients


def read() -> dict[str, Any]:
    """Return the fields of `schema.Keys`, which can be written as JSON."""
    classes = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    usable = {
        name: made
        for name, made in classes.items()
        if issubclass(made, torch.optim.Optimizer) and name not in _UNUSABLE
    }
    adam = _of_signature(FusedAdam) | _parameters(_ADAM_CHOICE)
    return {
        "top_level": {
            **_TOP_LEVEL,
            **{name: _of_model(model) for name, model in _MODELS.items()},
            "timers": {"throughput": _of_model(DeepSpeedThroughputTimerConfig)},
        },
        "schedules": {name: _of_signature(getattr(lr_schedules, name)) for name in lr_schedules.VALID_LR_SCHEDULES},
        "any_case": list(config.DEEPSPEED_OPTIMIZERS),
        "as_spelled": list(usable),
        "optimizer_params": {
            **{name: _of_signature(made) for name, made in usable.items()},
            **dict.fromkeys(("adam", "adamw"), adam),
            "torch_adam": _of_signature(torch.optim.AdamW) | _parameters(_ADAM_CHOICE),
            "adagrad": _of_signature(torch.optim.Adagrad),
            "lamb": _of_signature(FusedLamb),
            "lion": _of_signature(FusedLion) | _parameters(["fp32_optimizer_states"]),
            "muon": _parameters((*_MUON, *_ADAM_CHOICE, "foreach")),
        },
        "former": _former_keys(),
    }


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of one of DeepSpeed's models, each by its name and its alias, but for deprecated ones."""
    schema: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not _deprecated(field):
            kind = _STRICTER.get(name) or _of_annotation(field.annotation, field.metadata)
            schema |= {name: kind, field.alias or name: kind}
    return schema


def _deprecated(field: Any) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("deprecated"))


def _of_annotation(annotation: Any, limits: list[Any]) -> Any:
    """Return the kind of a model's field; none of DeepSpeed's settings is a negative number."""
    options = [option for option in get_args(annotation) if option is not NoneType]
    kind = options[0] if len(options) == 1 and NoneType in get_args(annotation) else annotation
    if get_origin(kind) or not isinstance(kind, type):
        return ANY
    if issubclass(kind, BaseModel):
        return _of_model(kind)
    if issubclass(kind, Enum):
        return [member.value for member in kind]
    if kind is int:
        return POSITIVE_SIZE if any(getattr(limit, "gt", None) == 0 for limit in limits) else SIZE
    if kind is float:
        return RATIO if any(getattr(limit, "le", None) == 1 for limit in limits) else NOT_NEGATIVE
    return {bool: BOOL, str: TEXT, Path: TEXT}.get(kind, ANY)


def _parameters(names: Iterable[str]) -> dict[str, Kind]:
    return {name: _PARAMETERS[name] for name in names}


def _of_signature(made: Callable[..., Any]) -> dict[str, Kind]:
    """Return the parameters of a constructor that a JSON file can give, the kinds by their name or default value."""
    skipped = ("params", "model_params", "optimizer", "max_grad_norm")
    parameters = inspect.signature(made).parameters
    return {name: _of_parameter(name, parameters[name].default) for name in parameters if name not in skipped}


def _of_parameter(name: str, default: object) -> Kind:
    if name in _PARAMETERS and (name == "betas" or not isinstance(default, tuple)):  # Adafactor's eps is a pair
        return _PARAMETERS[name]
    return {bool: BOOL, int: INDEX, float: NUMBER}.get(type(default), ANY)


def _former_keys() -> dict[str, str]:
    removed = getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {}) | getattr(config, "_REMOVED_ZERO_CONFIG_KEYS", {})
    fields: dict[str, Any] = DeepSpeedZeroConfig.model_fields
    renamed = {name: field.json_schema_extra["new_param"] for name, field in fields.items() if _deprecated(field)}
    lacking = ", which train.py does not have"
    return {
        **dict.fromkeys(removed, "DeepSpeed has removed it"),
        **{name: f"now it is {new}{lacking if 'offload' in new else ''}" for name, new in renamed.items()},
        "moe": 'experts are flags of train.py, here "bufudu": {"num_experts": 4, "num_experts_per_tok": 2}',
        constants.BFLOAT16_OLD: 'it is DeepSpeed\'s older name of "bf16"',
        constants.MAX_GRAD_NORM: 'DeepSpeed takes it at the top level, as "gradient_clipping"',
        "allgather_size": 'now it is "zero_optimization.allgather_bucket_size"',
    }

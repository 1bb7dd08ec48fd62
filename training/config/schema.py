"""The keys of a DeepSpeed JSON file and the kinds of their values, read from the installed DeepSpeed and PyTorch.

DeepSpeed ignores most keys that it does not know, so a misspelled one would train another recipe without a word.
Keys of blocks come from DeepSpeed's pydantic models, those of optimizers and schedules from the signatures of their
constructors. Only the top level, which DeepSpeed reads key by key, is written out here; a test compares it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from training.config.value_kinds import (
    ANY,
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
    one_of,
)

OWN_BLOCK = "bufudu"
"""The one block that is not DeepSpeed's: values of train.py's flags for the runs of this file."""

AUTO = "auto"
DEEPSPEED_AUTO = ("data_types.keep_in_fp32_modules", "pipeline", "zero_optimization.zenflow", "expert_parallel")
"""Keys and blocks where "auto" is a word of DeepSpeed's own."""

ZERO_TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
"""What DeepSpeed lets run under ZeRO as it is; any other optimizer needs "zero_allow_untested_optimizer"."""
_UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients

_DTYPE = one_of("fp32", "fp16", "bf16")
_TOP_LEVEL: Schema = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), COUNT),
    "gradient_clipping": NOT_NEGATIVE,
    # what "params" may hold depends on "type": see optimizer_params and schedules
    "optimizer": {"type": TEXT, "params": BLOCK, "legacy_fusion": BOOL},
    "scheduler": {"type": TEXT, "params": BLOCK},
    "torch_autocast": {"enabled": BOOL, "dtype": TEXT, "lower_precision_safe_modules": ANY},
    "data_types": {
        **dict.fromkeys(("grad_accum_dtype", "param_dtype", "buffer_dtype"), _DTYPE),
        "keep_in_fp32_modules": ANY,
    },
    **dict.fromkeys(("communication_data_type", "seq_parallel_communication_data_type"), _DTYPE),
    "gradient_predivide_factor": POSITIVE,
    "gradient_allreduce_op": one_of("mean", "sum"),
    **dict.fromkeys(("prescale_gradients", "managed_gradient_accumulation", "disable_allgather"), BOOL),
    **dict.fromkeys(("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), BOOL),
    **dict.fromkeys(("steps_per_print", "sequence_parallel_size", "vocabulary_size"), COUNT),
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc"), BOOL),
    **dict.fromkeys(("use_data_before_expert_parallelism", "dataloader_drop_last"), BOOL),
    "log_level": one_of("debug", "info", "warning", "error", "critical"),
    "timers": {"throughput": {"enabled": BOOL, "synchronized": BOOL}},
    "flops_profiler": {
        **dict.fromkeys(("enabled", "detailed"), BOOL),
        **dict.fromkeys(("profile_step", "top_modules"), COUNT),
        "recompute_fwd_factor": NOT_NEGATIVE,
        "module_depth": Kind("a whole number of at least -1", lambda value: type(value) is int and value >= -1),
        "output_file": TEXT,
    },
    "comms_logger": {**dict.fromkeys(("enabled", "verbose", "prof_all", "debug"), BOOL), "prof_ops": ANY},
    # blocks that change nothing here, or that train.py refuses (features.py): anything passes
    **dict.fromkeys(("checkpoint", "aio", "autotuning", "data_efficiency", "datastates_ckpt"), BLOCK),
    **dict.fromkeys(("expert_parallel", "pipeline", "tensor_parallel"), BLOCK),
}
# Stricter than DeepSpeed's models, which let a loss scale be 0 or less while it is not used
_STRICTER: Schema = {
    "loss_scale": NOT_NEGATIVE,
    "loss_scale_window": COUNT,
    "hysteresis": COUNT,
    "min_loss_scale": COUNT,
    "samples_log_interval": COUNT,
}
# Parameters of optimizers and schedules whose default value does not tell the kind
_PARAMETERS: Schema = {
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
    "ns_method": one_of("gram", "standard", "polar"),
    "warmup_type": one_of("linear", "log"),
    "last_batch_iteration": Kind("a whole number of at least -1", lambda value: type(value) is int and value >= -1),
}
_ADAM_CHOICE = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")  # read by DeepSpeed, not by the optimizer
_MUON = ("lr", "muon_lr", "adam_lr", "momentum", "weight_decay", "ns_method", "per_head_muon", "betas", "eps")


@cache
def top_level() -> Schema:
    """Return the whole table; importing DeepSpeed, which takes a second, waits until a file is checked."""
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import config, precision_config
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {
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
    }
    return {
        **_TOP_LEVEL,
        **{name: _of_model(model) for name, model in models.items()},
        "activation_checkpointing": {
            name: COUNT if value is None else BOOL for name, value in ACT_CHKPT_DEFAULT.items()
        },
    }


def _of_model(model: type[BaseModel]) -> Schema:
    """Return the keys of one of DeepSpeed's models, each by its name and its alias, but for deprecated ones."""
    schema: dict[str, Kind | Schema] = {}
    for name, field in model.model_fields.items():
        if not _deprecated(field):
            kind = _STRICTER.get(name) or _of_annotation(field.annotation, field.metadata)
            schema |= {name: kind, field.alias or name: kind}
    return schema


def _deprecated(field: Any) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("deprecated"))


def _of_annotation(annotation: Any, limits: list[Any]) -> Kind | Schema:
    """Return the kind of a model's field; none of DeepSpeed's settings is a negative number."""
    options = [option for option in get_args(annotation) if option is not NoneType]
    kind = options[0] if len(options) == 1 and NoneType in get_args(annotation) else annotation
    if get_origin(kind) or not isinstance(kind, type):
        return ANY
    if issubclass(kind, BaseModel):
        return _of_model(kind)
    if issubclass(kind, Enum):
        return one_of(*(member.value for member in kind))
    if kind is int:
        return POSITIVE_SIZE if any(getattr(limit, "gt", None) == 0 for limit in limits) else SIZE
    if kind is float:
        return RATIO if any(getattr(limit, "le", None) == 1 for limit in limits) else NOT_NEGATIVE
    return BOOL if kind is bool else TEXT if kind in (str, Path) else ANY


@cache
def schedules() -> Mapping[str, Schema]:
    """Return DeepSpeed's learning-rate schedules, each with its parameters."""
    from deepspeed.runtime import lr_schedules

    return {name: _of_signature(getattr(lr_schedules, name)) for name in lr_schedules.VALID_LR_SCHEDULES}


@cache
def optimizers() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that DeepSpeed takes in any case of letters, and those exactly as torch.optim spells them."""
    import torch
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    classes = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    names = [name for name, cls in classes.items() if issubclass(cls, torch.optim.Optimizer) and name not in _UNUSABLE]
    return tuple(DEEPSPEED_OPTIMIZERS), tuple(names)


def optimizer_names() -> list[str]:
    """Return every optimizer's name once, as a person would write it."""
    deepspeed, torch = optimizers()
    spelled = {name.lower(): name for name in torch}
    return sorted(torch) + [name.title() for name in deepspeed if name not in spelled]


def optimizer_params(name: str, torch_adam: bool) -> Schema | None:
    """Return what `optimizer.params` may hold; None for an optimizer whose parameters are not known."""
    import torch
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import FusedLion

    if name.lower() == "muon":
        return _parameters(*_MUON, *_ADAM_CHOICE, "foreach")
    if name.lower() in ("adam", "adamw"):
        return _of_signature(torch.optim.AdamW if torch_adam else FusedAdam) | _parameters(*_ADAM_CHOICE)
    if name.lower() == "lion":
        return _of_signature(FusedLion) | _parameters("fp32_optimizer_states")
    found = {"lamb": FusedLamb, "adagrad": torch.optim.Adagrad}.get(name.lower())
    found = found or (getattr(torch.optim, name) if name in optimizers()[1] else None)
    return None if found is None else _of_signature(found)


def _parameters(*names: str) -> dict[str, Kind | Schema]:
    return {name: _PARAMETERS[name] for name in names}


def _of_signature(made: Callable[..., Any]) -> dict[str, Kind | Schema]:
    """Return the parameters of a constructor that a JSON file can give, the kinds by their name or default value."""
    skipped = ("params", "model_params", "optimizer", "max_grad_norm")
    return {
        name: _PARAMETERS[name]
        if name in _PARAMETERS and not _pair(name, parameter)
        else _of_default(parameter.default)
        for name, parameter in inspect.signature(made).parameters.items()
        if name not in skipped
    }


def _pair(name: str, parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a pair where others of its name are not: Adafactor's eps."""
    return isinstance(parameter.default, tuple) and name != "betas"


def _of_default(value: object) -> Kind:
    if isinstance(value, bool):
        return BOOL
    return INDEX if isinstance(value, int) else NUMBER if isinstance(value, float) else ANY


@cache
def former_keys() -> Mapping[str, str]:
    """Return the names that were once right, or are right in another place, each with what to write instead."""
    from deepspeed.runtime import config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    removed = getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {}) | getattr(config, "_REMOVED_ZERO_CONFIG_KEYS", {})
    fields = DeepSpeedZeroConfig.model_fields.items()
    extras = {name: field.json_schema_extra for name, field in fields if _deprecated(field)}
    renamed = {name: extra["new_param"] for name, extra in extras.items() if isinstance(extra, dict)}
    return {
        **dict.fromkeys(removed, "DeepSpeed has removed it"),
        **{name: f"now it is {new}" for name, new in renamed.items()},
        "bfloat16": 'it is DeepSpeed\'s older name of "bf16"',
        "max_grad_norm": 'DeepSpeed takes it at the top level, as "gradient_clipping"',
        "allgather_size": 'now it is "zero_optimization.allgather_bucket_size"',
    }


def known_paths() -> Iterator[str]:
    """Yield every key of the file, dotted, with the parameters of all schedules and of the usual optimizers."""
    yield from _paths(top_level(), "")
    for name, torch_adam in (("AdamW", True), ("Muon", True), ("AdamW", False)):
        yield from _paths(optimizer_params(name, torch_adam) or {}, "optimizer.params.")
    for params in schedules().values():
        yield from _paths(params, "scheduler.params.")


def _paths(schema: Schema, prefix: str) -> Iterator[str]:
    for key, kind in schema.items():
        yield prefix + key
        if isinstance(kind, Mapping):
            yield from _paths(kind, f"{prefix}{key}.")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most like `word`, if any is like it."""
    word, spelled = word.lower(), {each.lower(): each for each in known}
    found = difflib.get_close_matches(word, spelled, n=1, cutoff=0.6)
    # "path" for "output_path": too short to count as close, yet surely meant
    found = found or [each for each in spelled if len(word) >= 4 and word in each]
    return spelled[found[0]] if found else None


def nearest_key(path: str, siblings: Iterable[str]) -> str | None:
    """Return the dotted key that `path` was probably meant to be: in its own block, or its name elsewhere."""
    parent, _, name = path.rpartition(".")
    inside = nearest(name, siblings)
    if inside is not None:
        return f"{parent}.{inside}" if parent else inside
    leaves: dict[str, str] = {}
    for known in known_paths():
        leaves.setdefault(known.rpartition(".")[2], known)
    found = nearest(name, leaves)
    # the same key may be one of another optimizer
    return leaves[found] if found and leaves[found] != path else None

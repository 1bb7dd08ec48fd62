"""What a DeepSpeed JSON can ask for beyond what train.py does: refused with the reason, or noted if harmless."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from training.config.problems import Problems
from training.config.schema import AUTO
from training.config.settings import Settings

_TAKE_OUT = "Take it out."
_SIZE = "Take it out; a smaller train_micro_batch_size_per_gpu, or more processes under ZeRO-2, saves memory."
_SPLIT = "Take it out; --ep_size splits the experts over processes, and ZeRO the optimizer's states."
_ZERO3 = "it belongs to ZeRO-3, which takes whole weights apart that train.py reads to evaluate, export and save."
_CHECKPOINTS = "train.py writes checkpoints of its own format"
_OFFLOADING = "it goes with offloading, and here nothing is offloaded."
LACKING: Mapping[str, tuple[str, str]] = {
    "zero_optimization.offload_optimizer": ("the optimizer's states stay on the device that trains.", _SIZE),
    "zero_optimization.offload_param": ("the weights stay on the device that trains.", _SIZE),
    **dict.fromkeys(("zero_optimization.zenflow", "fp16.fp16_master_weights_and_grads"), (_OFFLOADING, _SIZE)),
    "zero_optimization.zero_hpz_partition_size": (_ZERO3, _TAKE_OUT),
    "zero_optimization.zero_quantized_weights": (_ZERO3, _TAKE_OUT),
    "zero_optimization.zero_quantized_nontrainable_weights": (_ZERO3, _TAKE_OUT),
    "zero_optimization.zero_quantized_gradients": (_ZERO3, _TAKE_OUT),
    "zero_optimization.legacy_stage1": ("DeepSpeed has removed it.", _TAKE_OUT),
    "activation_checkpointing": ("the model keeps its activations and recomputes none.", _SIZE),
    "autotuning": (
        "DeepSpeed's tuner would have to start train.py, and stop it after a few steps.",
        "Set autotuning.enabled to false; --plan says what fits into the memory, --tune what is fastest.",
    ),
    "data_efficiency": ("train.py decides which rows a step gets, so that a run can continue exactly.", _TAKE_OUT),
    "pipeline": ("train.py does not split the layers.", _SPLIT),
    "tensor_parallel": ("train.py does not split matrices.", _SPLIT),
    "sequence_parallel_size": ("train.py does not split rows.", _SPLIT),
    "expert_parallel": ("train.py has expert layers of its own.", _SPLIT),
    "compile": ("train.py compiles nothing.", _TAKE_OUT),
    "hybrid_engine": ("it is for generation within RLHF.", "Take it out; generate.py is fast without it."),
    "weight_quantization": (
        "train.py trains no quantized weights.",
        "Take it out; export.py quantizes a trained model.",
    ),
    "torch_autocast": (
        "the expert layers take one precision at a time.",
        "Use the file's fp16 or bf16 block in its place: --set torch_autocast=null.",
    ),
    "datastates_ckpt": (f"{_CHECKPOINTS}.", "Take it out; --save_interval says how often."),
}
WITHOUT_EFFECT: Mapping[str, str] = {
    "checkpoint": _CHECKPOINTS,
    "zero_optimization.load_from_fp32_weights": _CHECKPOINTS,
    "zero_optimization.elastic_checkpoint": _CHECKPOINTS,
    "zero_optimization.pipeline_loading_checkpoint": _CHECKPOINTS,
    **dict.fromkeys(("aio", "zero_force_ds_cpu_optimizer"), "nothing is offloaded"),
    "dataloader_drop_last": "rows are read from shards, without DeepSpeed's loader",
    "vocabulary_size": "the tokenizer says it",
    "seq_parallel_communication_data_type": "rows are not split",
    "zero_optimization.leaf_module": "it is for ZeRO-3",
}
# with or without "stage3_" before them
OF_ZERO3 = (
    "gather_16bit_weights_on_model_save",
    "max_live_parameters",
    "max_reuse_distance",
    "model_persistence_threshold",
    "module_granularity_threshold",
    "param_persistence_threshold",
    "prefetch_bucket_size",
    "use_all_reduce_for_fetch_params",
    "allgather_sequential",
    "sub_group_size",
    "memory_efficient_linear",
    "override_module_apply",
    "log_trace_cache_warnings",
    "enable_sanity_checks",
)
_PACKAGES = {"wandb": "wandb", "comet": "comet_ml", "tensorboard": "tensorboard"}


def check_features(settings: Settings, problems: Problems) -> None:
    """Name every feature that is asked for and that train.py, or this environment, does not have."""
    config = settings.config
    for key, (why, hint) in LACKING.items():
        if _asked_for(settings.at(key)):
            problems.add(key, why, hint)
    if config.get("managed_gradient_accumulation") is False:
        what = "train.py leaves the counting of micro-batches to DeepSpeed."
        problems.add("managed_gradient_accumulation", what, _TAKE_OUT)
    if config.get("use_data_before_expert_parallelism"):
        what = "train.py counts on experts split over neighbouring processes."
        problems.add("use_data_before_expert_parallelism", what, _TAKE_OUT)
    for block, package in _PACKAGES.items():
        if settings.block(block).get("enabled") is True and importlib.util.find_spec(package) is None:
            what = f"the package {package} is not installed."
            problems.add(f"{block}.enabled", what, f"pip install {package}, or --set {block}.enabled=false.")


def without_effect(settings: Settings) -> Iterator[str]:
    """Yield a note for each key that is let through and changes nothing here."""
    for key, why in WITHOUT_EFFECT.items():
        if settings.at(key) is not None:
            yield f"{key}: without effect here, {why}"
    found = [name for name in settings.block("zero_optimization") if name.removeprefix("stage3_") in OF_ZERO3]
    if found:
        yield f"zero_optimization: {', '.join(found)}: without effect, they are for ZeRO-3"


def _asked_for(value: object) -> bool:
    """Whether a value turns something on: not false, "auto", "none", a size of 1, or a block that says so."""
    if isinstance(value, Mapping):
        decisive = [value[name] for name in ("enabled", "device", "autotp_size", "deepcompile") if name in value]
        return any(map(_asked_for, decisive or value.values()))
    return value is True or (not isinstance(value, bool) and value not in (None, 0, 1, AUTO, "none", [], ""))

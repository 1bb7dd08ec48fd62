"""Every key that train.py lets through to DeepSpeed, in as few configurations as can hold them: each is really stepped.

test_configurations.py (a unit test) sees to it that no key of the schema is missing here that is not refused, and
worker_engine.py takes one optimizer step with each on two processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Configuration:
    """Changes of a file of ds_configs/, for a model with experts unless it is dense."""

    changes: tuple[str, ...]
    base: str = "ampere_x2"
    dense: bool = False


def _zero(*names: str) -> tuple[str, ...]:
    return tuple(f"zero_optimization.{name}" for name in names)


def _optimizer(name: str, stage: int, schedule: dict | None = None, **params: object) -> Configuration:
    block = json.dumps({"type": name, "params": {"lr": 1e-3, **params}})
    changes = (f"optimizer={block}", "zero_allow_untested_optimizer=true", *_zero(f"stage={stage}"))
    return Configuration((*changes, f"scheduler={json.dumps(schedule)}") if schedule else changes)


_WARMUP = {"warmup_min_lr": 0.0, "warmup_max_lr": 1e-3, "warmup_num_steps": 2, "warmup_type": "linear"}
_CYCLE = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_first_step_size": 2}
_RANGE = {"lr_range_test_min_lr": 1e-4, "lr_range_test_step_size": 2}
CONFIGURATIONS = {
    "what is printed or changes nothing": Configuration(
        (
            "wall_clock_breakdown=true",
            "dump_state=true",
            "steps_per_print=1",
            "log_level=info",
            "disable_python_gc=true",
            "timers.throughput.enabled=true",
            "timers.throughput.synchronized=false",
            "comms_logger.enabled=true",
            "comms_logger.verbose=true",
            "comms_logger.prof_all=true",
            "comms_logger.debug=true",
            "comms_logger.prof_ops=[]",
            "csv_monitor.enabled=true",
            "csv_monitor.output_path=auto",
            "csv_monitor.job_name=auto",
            "flops_profiler.enabled=true",
            "flops_profiler.profile_step=1",
            "flops_profiler.module_depth=-1",
            "flops_profiler.top_modules=1",
            "flops_profiler.detailed=true",
            "flops_profiler.recompute_fwd_factor=0",
            "flops_profiler.output_file=profile.txt",
            "memory_breakdown=false",
            "checkpoint.use_node_local_storage=true",
            "aio.block_size=1048576",
            "zero_force_ds_cpu_optimizer=false",
            "dataloader_drop_last=true",
            "vocabulary_size=128",
            "seq_parallel_communication_data_type=bf16",
            "compile.deepcompile=false",
            "compile.debug_log=true",
            "sequence_parallel_size=1",
            "tensor_parallel.autotp_size=1",
            "activation_checkpointing.partition_activations=false",
            "torch_autocast.enabled=false",
            "wandb.enabled=false",
            "comet.enabled=false",
            "hybrid_engine.enabled=false",
            *_zero("load_from_fp32_weights=false", "elastic_checkpoint=true", "pipeline_loading_checkpoint=true"),
            *_zero("stage3_max_live_parameters=1e9", "sub_group_size=1e9", "offload_optimizer.device=none"),
            *_zero('leaf_module.names=["x"]'),
        )
    ),
    "ZeRO-2 otherwise": Configuration(
        (
            *_zero("overlap_comm=true", "allgather_partitions=false", "use_multi_rank_bucket_allreduce=false"),
            *_zero("round_robin_gradients=true", "parameter_alignment=true", "ignore_unused_parameters=false"),
            *_zero("reduce_bucket_size=1e6", "allgather_bucket_size=0", "save_muon_momentum_buffer_in_memory=true"),
            "communication_data_type=fp32",
            "data_types.grad_accum_dtype=fp32",
            "data_types.param_dtype=bf16",
            "data_types.buffer_dtype=fp32",
            'data_types.keep_in_fp32_modules=["norm"]',
            "gradient_allreduce_op=sum",
            "disable_allgather=true",
            "bf16.immediate_grad_update=false",
            "bf16.check_grad_overflow=true",
            "optimizer.legacy_fusion=true",
        )
    ),
    "ZeRO-1": Configuration(
        (
            *_zero("stage=1", "contiguous_gradients=false"),
            "prescale_gradients=true",
            "gradient_predivide_factor=2",
            "gradient_allreduce_op=mean",
            "managed_gradient_accumulation=true",
            "use_data_before_expert_parallelism=false",
        )
    ),
    "no ZeRO": Configuration((*_zero("stage=0"), "communication_data_type=fp16", "gradient_clipping=0")),
    "dense": Configuration(
        (*_zero("reduce_scatter=false"), "prescale_gradients=true", "gradient_predivide_factor=2"), dense=True
    ),
    "bf16 states, no norm": Configuration(
        (
            *_zero("compute_grad_norm=false"),
            "gradient_clipping=0",
            "bf16.bf16_master_weights_and_grads=true",
            "bf16.bf16_optimizer_states=true",
        )
    ),
    "fp16": Configuration(
        (
            "fp16.auto_cast=true",
            "fp16.consecutive_hysteresis=true",
            "fp16.min_loss_scale=2",
            "fp16.hysteresis=3",
            "fp16.initial_scale_power=8",
            "fp16.loss_scale_window=10",
        ),
        base="t4x2",
    ),
    "fp16 with a fixed scale": Configuration(("fp16.loss_scale=128",), base="t4x2"),
    "Adadelta": _optimizer("Adadelta", 2, {"type": "WarmupLR", "params": _WARMUP}),
    "Adafactor": _optimizer("Adafactor", 2, {"type": "WarmupDecayLR", "params": _WARMUP | {"total_num_steps": "auto"}}),
    "Adamax": _optimizer("Adamax", 2, {"type": "OneCycle", "params": _CYCLE}),
    "RAdam": _optimizer("RAdam", 2, {"type": "LRRangeTest", "params": _RANGE}),
    "RMSprop": _optimizer("RMSprop", 2, momentum=0.9),
    "Rprop": _optimizer("Rprop", 2),
    "SGD": _optimizer("SGD", 2, momentum=0.9),
    "Adagrad": _optimizer("Adagrad", 0),
    "NAdam": _optimizer("NAdam", 0),
    "ASGD": _optimizer("ASGD", 0),
}

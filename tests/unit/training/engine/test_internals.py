"""DeepSpeed's private attributes are where training/engine expects them; an upgrade that moves one fails here."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[4]
SEAM = ROOT / "training" / "engine"

# class or module of DeepSpeed | attributes | what of this project goes wrong without them
PRIVATE = """
runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer | params_in_partition single_partition_of_fp32_groups bit16_groups
    optimizer _is_muon_group | checkpoints under ZeRO-1 and 2 (internals.shards)
runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer | loss_scaler | the loss scale (internals.loss_scaler)
runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer | update_lp_params | loading (internals.publish_master_weights)
runtime.bf16_optimizer:BF16_Optimizer | update_lp_params | loading (internals.publish_master_weights)
runtime.bf16_optimizer:BF16_Optimizer | fp32_groups_flat_partition bf16_groups optimizer
    | checkpoints in bf16 (internals.shards)
runtime.fp16.fused_optimizer:FP16_Optimizer | fp32_groups_flat fp16_groups optimizer
    | checkpoints in fp16 without ZeRO (internals._whole)
runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer | fp32_groups fp16_groups optimizer
    | checkpoints in fp16 without ZeRO (internals._whole)
runtime.fp16.fused_optimizer:FP16_Optimizer | loss_scale_config | the loss scale (internals.loss_scaler)
runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer | loss_scale_config | the loss scale (internals.loss_scaler)
runtime.fp16.loss_scaler:DynamicLossScaler | cur_scale cur_iter last_overflow_iter cur_hysteresis
    | the loss scale of a continued run (engine_state.py)
runtime.fp16.loss_scaler:DynamicLossScaler | min_scale raise_error_at_min_scale
    | stopping at the lowest loss scale (internals.lowest_loss_scale)
runtime.fp16.loss_scaler:LossScaleConfig | cur_scale cur_iter last_overflow_iter min_loss_scale
    | the loss scale of a continued run without ZeRO (engine_state.py)
utils.tensor_fragment:tensor_fragment | hp_fragment_address lp_fragment_address
    | checkpoints and update_ratio (internals.shards)
utils.tensor_fragment:tensor_fragment | get_lp_grad_fragment | preflight's gradients (internals.gradient)
utils.mixed_precision_linkage | _hp_mapping _index_in_param_group
    | checkpoints, update_ratio and preflight's gradients (internals)
utils.groups | _get_expert_parallel_group | exporting experts of several ranks (internals.expert_group)
utils.groups | _get_expert_data_parallel_rank | checkpoints without ZeRO (internals._is_first_copy)
moe.layer:MoE | expert_group_name | checkpoints without ZeRO (internals._is_first_copy)
monitor.monitor:MonitorMaster | tb_monitor | TensorBoard (internals.summary_writer)
monitor.tensorboard:TensorBoardMonitor | summary_writer | TensorBoard (internals.summary_writer)
runtime.zero.muon.original_muon | muon_update | "ns_method": "polar" (muon.py)
runtime.zero.muon.muon_optimizer | muon_update | "ns_method": "polar" (muon.py)
runtime.engine:DeepSpeedEngine | global_steps global_samples skipped_steps micro_steps
    | the counts of a continued run (engine_state.py)
ops | __compatible_ops__ | starting on a CPU without a compiler (build.py)
 | set_optimizer_flags use_muon | keeping Muon off the routers (build.py)
"""
CASES = [
    (where.strip(), name, used.strip())
    for where, names, used in (row.split("|") for row in re.split(r"\n(?! {4})", PRIVATE.strip("\n")))
    for name in names.split()
]


@pytest.mark.parametrize(("where", "name", "used"), CASES, ids=[f"{where}.{name}" for where, name, _ in CASES])
def test_deepspeed_still_has(where, name, used):
    module, _, kind = where.partition(":")
    place = importlib.import_module(f"deepspeed.{module}".rstrip("."))
    place = getattr(place, kind) if kind else place
    # an instance's attributes are only assigned in its constructor, or with setattr, where `hasattr` does not see them
    assigned = re.compile(rf"\.{re.escape(name)}\b\s*(=|:)[^=]|[\"']{re.escape(name)}[\"']")
    sources = (inspect.getsource(part) for part in getattr(place, "__mro__", [place]) if part is not object)
    found = hasattr(place, name) or name in getattr(place, "__dataclass_fields__", ())
    assert found or any(assigned.search(source) for source in sources), (
        f"this DeepSpeed has no `{name}` in deepspeed.{where.replace(':', '.')}: training/engine needs it for {used}"
    )


def test_nothing_else_reads_them():
    private = {name for _, name, _ in CASES if name.startswith("_") and not name.startswith("__")}
    private |= {"single_partition_of_fp32_groups", "fp32_groups_flat", "fp32_groups_flat_partition", "tb_monitor"}
    for path in [*(ROOT / "training").rglob("*.py"), *(ROOT / "model").rglob("*.py")]:
        if SEAM not in path.parents:
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not names & private, f"{path.relative_to(ROOT)} reads {names & private}: training/engine is for that"

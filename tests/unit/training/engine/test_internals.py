"""DeepSpeed's private attributes are where training/engine expects them: an upgrade that moves one fails here by name."""

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
ENGINE, ZERO = "deepspeed.runtime.engine:DeepSpeedEngine", "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
BF16 = "deepspeed.runtime.bf16_optimizer:BF16_Optimizer"
FUSED = "deepspeed.runtime.fp16.fused_optimizer:FP16_Optimizer"
UNFUSED = "deepspeed.runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer"
SCALER = "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler"
LINK = "deepspeed.utils.tensor_fragment:tensor_fragment"
BOARD = "deepspeed.monitor.tensorboard:TensorBoardMonitor"

# (where, attribute, what of this project goes wrong without it)
PRIVATE = [
    *((ZERO, name, "checkpoints under ZeRO-1 and 2 (internals.shards)") for name in (
        "params_in_partition", "single_partition_of_fp32_groups", "bit16_groups", "optimizer", "_is_muon_group",
    )),
    (ZERO, "loss_scaler", "the loss scale under ZeRO (internals.loss_scaler)"),
    (ZERO, "update_lp_params", "loading a checkpoint (internals.publish_master_weights)"),
    (BF16, "update_lp_params", "loading a checkpoint (internals.publish_master_weights)"),
    *((BF16, name, "checkpoints in bf16 (internals.shards)") for name in (
        "fp32_groups_flat_partition", "bf16_groups", "optimizer",
    )),
    *((FUSED, name, "checkpoints in fp16 without ZeRO (internals._whole)") for name in (
        "fp32_groups_flat", "fp16_groups", "optimizer",
    )),
    *((UNFUSED, name, "checkpoints in fp16 without ZeRO (internals._whole)") for name in (
        "fp32_groups", "fp16_groups", "optimizer",
    )),
    *((where, "loss_scale_config", "the loss scale without ZeRO (internals.loss_scaler)") for where in (FUSED, UNFUSED)),
    *((SCALER, name, "the loss scale of a continued run (engine_state.py)") for name in (
        "cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis",
    )),
    *((SCALER, name, "the stop at the lowest loss scale (internals.lowest_loss_scale)") for name in (
        "min_scale", "raise_error_at_min_scale",
    )),
    *(("deepspeed.runtime.fp16.loss_scaler:LossScaleConfig", name, "the loss scale without ZeRO") for name in (
        "cur_scale", "cur_iter", "last_overflow_iter", "min_loss_scale",
    )),
    *((LINK, name, "checkpoints and update_ratio (internals.shards, owned_weights)") for name in (
        "hp_fragment", "hp_fragment_address", "lp_fragment_address",
    )),
    (LINK, "get_lp_grad_fragment", "preflight's gradient check (internals.gradient)"),
    ("deepspeed.utils.mixed_precision_linkage", "_hp_mapping", "checkpoints and update_ratio (internals.shards)"),
    ("deepspeed.utils.mixed_precision_linkage", "_index_in_param_group", "preflight's gradient check (internals.gradient)"),
    ("deepspeed.utils.groups", "_get_expert_parallel_group", "exporting split experts (internals.expert_group)"),
    ("deepspeed.utils.groups", "_get_expert_data_parallel_rank", "checkpoints without ZeRO (internals._is_first_copy)"),
    ("deepspeed.moe.layer:MoE", "expert_group_name", "checkpoints without ZeRO (internals._is_first_copy)"),
    ("deepspeed.monitor.monitor:MonitorMaster", "tb_monitor", "TensorBoard (internals.summary_writer)"),
    (BOARD, "summary_writer", "TensorBoard (internals.summary_writer)"),
    ("deepspeed", "set_optimizer_flags", "keeping Muon off the routers (build.py)"),
    ("deepspeed", "use_muon", "keeping Muon off the routers (build.py)"),
    ("deepspeed.ops", "__compatible_ops__", "starting on a CPU without a compiler (build.py)"),
    ("deepspeed.runtime.zero.muon.original_muon", "muon_update", '"ns_method": "polar" (muon.py)'),
    ("deepspeed.runtime.zero.muon.muon_optimizer", "muon_update", '"ns_method": "polar" (muon.py)'),
    *((ENGINE, name, "a continued run's counts (engine_state.py)") for name in (
        "global_steps", "global_samples", "skipped_steps", "micro_steps",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "used"), PRIVATE, ids=[f"{w.split('.')[-1]}.{n}" for w, n, _ in PRIVATE])
def test_deepspeed_still_has(where, name, used):
    module, _, kind = where.partition(":")
    place = importlib.import_module(module)
    place = getattr(place, kind) if kind else place
    assigned = re.compile(rf"\.{re.escape(name)}\b\s*(=|:)[^=]")  # in a constructor, where `hasattr` does not see it
    sources = (inspect.getsource(part) for part in getattr(place, "__mro__", [place]) if part is not object)
    found = hasattr(place, name) or name in getattr(place, "__dataclass_fields__", ())
    assert found or any(assigned.search(source) for source in sources), (
        f"DeepSpeed's {where.replace(':', '.')} has no `{name}` any more, which {used} reads in training/engine"
    )


def test_nothing_else_reads_them():
    private = {name for _, name, _ in PRIVATE if name.startswith("_") and not name.startswith("__")}
    private |= {"single_partition_of_fp32_groups", "fp32_groups_flat", "fp32_groups_flat_partition", "tb_monitor"}
    for path in [*(ROOT / "training").rglob("*.py"), *(ROOT / "model").rglob("*.py")]:
        if SEAM not in path.parents:
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not names & private, f"{path.relative_to(ROOT)} reads {names & private}: training/engine is for that"

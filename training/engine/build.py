"""Build the DeepSpeed engine: parameter groups, initial weights, and the few switches its JSON has no key for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from common.hardware import detect
from common.uncompiled import import_uncompiled, leave_compiler_out
from model import CausalLM, ModelConfig
from model.hf import hf_name
from model.init import init_weights
from model.kernels import Kernels
from model.moe import DeepSpeedMoE
from training.base_model import load_base_weights
from training.engine import muon
from training.engine.protocol import Engine
from training.engine.trackers import own_axes

_NO_TIMER = {
    "timers": {"throughput": {"enabled": False}}
}  # it waits for the GPU twice a micro-batch; a run has its own


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups, one without weight decay (norms, biases, embeddings); DeepSpeed-MoE splits off the experts."""
    from deepspeed.moe.utils import has_moe_layers, split_params_into_different_moe_groups_for_optimizer

    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim < 2 or "embed" in name else decayed).append(parameter)
    groups = [{"name": "decay", "params": decayed}, {"name": "no_decay", "params": plain, "weight_decay": 0.0}]
    if has_moe_layers(model)[0]:
        return split_params_into_different_moe_groups_for_optimizer(groups)
    return groups


@contextmanager
def _routers_left_to_adam() -> Iterator[None]:
    """Keep Muon off the routers.

    DeepSpeed marks every matrix whose name lacks `embed` for Muon inside `initialize`, over any mark of ours. A
    router's rows are scores of separate experts, not one linear map: orthogonalising their update moves every expert
    alike.
    """
    import deepspeed

    mark_all = deepspeed.set_optimizer_flags

    def mark(config: Any, model: nn.Module) -> None:
        mark_all(config, model)
        for name, parameter in model.named_parameters():
            if hf_name(name, model).endswith(".mlp.gate.weight") and hasattr(parameter, "use_muon"):
                setattr(parameter, "use_muon", False)  # noqa: B010 (no attribute that torch knows of)

    with mock.patch.object(deepspeed, "set_optimizer_flags", mark):
        yield


def build_engine(
    config: ModelConfig,
    ds_config: dict[str, Any],
    *,
    seed: int,
    rank: int,
    init_from: Path | None = None,
    kernels: Sequence[str] = (),
) -> Engine:
    """Put the network under `deepspeed.initialize`; torch.distributed must be up.

    Its weights are drawn by `seed`, or are those of the model in the folder `init_from`. It computes the operations
    named in `kernels` with fused kernels.

    Nothing is compiled at the first start: on CPU, DeepSpeed's shared-memory all-reduce would be (half a minute, and a
    failure where there is no compiler), and what it gains over gloo was lost in the noise (docs/dev/log.md).
    """
    import deepspeed

    if not torch.cuda.is_available():
        # half a minute at the first step of Muon, a compiler needed, no gain
        leave_compiler_out()
        import_uncompiled("deepspeed.runtime.zero.muon.original_muon")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # expert-parallel groups are runs of consecutive ranks (deepspeed.utils.groups)
    ep_rank = rank % config.ep_size
    model = CausalLM(config, lambda shape: DeepSpeedMoE(shape, ep_rank))
    model.use_kernels(Kernels.fused(kernels))
    init_weights(model, config, seed)
    if init_from is not None:
        load_base_weights(model, init_from)
    with _routers_left_to_adam():
        parameters: Any = parameter_groups(model)  # DeepSpeed's annotation has no groups
        engine: Any
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            config=_NO_TIMER | muon.install_polar(ds_config, bf16_fast=detect().bf16_fast),
        )
    own_axes(engine.monitor)
    return engine

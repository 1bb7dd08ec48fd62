"""Everything that is read of DeepSpeed's private attributes; tests/unit/training/engine/test_internals.py lists them.

DeepSpeed spreads the fp32 master weights and the optimizer's states over the ranks as flat vectors whose cuts depend on
the number of ranks, the ZeRO stage and `ep_size`. A `Shard` names the parameter (by its Hugging Face name, an expert by
its global number) and the place in it, so that a checkpoint of one layout can be read into another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.hf import hf_name, is_expert
from training.engine.protocol import Engine, Monitor

MASTER, MOMENTUM, STEP = "master", "momentum_buffer", "step"
Names = dict[nn.Parameter, str]


# --- loss scale, monitor, process groups ------------------------------------------------------------------------------


def loss_scaler(engine: Engine) -> Any:
    """Return what holds the loss scale: DeepSpeed's scaler or, without ZeRO, its configuration; None but in fp16."""
    if not engine.fp16_enabled():
        return None
    optimizer: Any = engine.optimizer
    return getattr(optimizer, "loss_scaler", None) or optimizer.loss_scale_config


def loss_scale(engine: Engine) -> float | None:
    """Return the dynamic loss scale, None where the precision needs none."""
    scaler = loss_scaler(engine)
    return None if scaler is None else float(scaler.cur_scale)


def lowest_loss_scale(engine: Engine) -> float | None:
    """Return the least loss scale that DeepSpeed goes down to, and keep it from raising an error there."""
    scaler = loss_scaler(engine)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # the training loop stops in order, with a report
    return getattr(scaler, "min_scale", None) or getattr(scaler, "min_loss_scale", None)


def summary_writer(monitor: Monitor) -> Any:
    """Return torch's SummaryWriter below DeepSpeed's monitor, which has scalars only; None without TensorBoard."""
    board = getattr(monitor, "tb_monitor", None)  # None where no monitor at all is enabled
    return getattr(board, "summary_writer", None) if board is not None and board.enabled else None


def expert_group(ep_size: int) -> dist.ProcessGroup:
    """Return the process group over which the experts of a layer are split."""
    from deepspeed.utils import groups

    return groups._get_expert_parallel_group(f"ep_size_{ep_size}")


def _is_first_copy(engine: Engine, *, expert: bool) -> bool:
    """Return whether this rank is the first of those that hold the same parameters."""
    if not expert:
        return engine.global_rank == 0
    from deepspeed.utils import groups

    name = next(layer.moe.expert_group_name for layer in engine.module.expert_layers())
    return groups._get_expert_data_parallel_rank(name) == 0


# --- gradients and published weights ----------------------------------------------------------------------------------


def gradient(parameter: nn.Parameter) -> Tensor | None:
    """Return this rank's part of the gradient that the next step uses, None where DeepSpeed does not show it."""
    if parameter.grad is not None or getattr(parameter, "_hp_mapping", None) is None:
        return parameter.grad
    linked: Any = parameter
    try:
        return linked._hp_mapping.get_lp_grad_fragment(linked._index_in_param_group)
    except (ValueError, IndexError, TypeError):
        return None


def publish_master_weights(engine: Engine) -> None:
    """Round the fp32 master weights into the weights that the network computes with; collective."""
    optimizer: Any = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups_flat") or hasattr(optimizer, "fp32_groups"):
        with torch.no_grad():
            for parameter, kind, values in _whole(optimizer):
                if kind == MASTER:
                    parameter.data.copy_(values.view_as(parameter))


# --- shards of the optimizer's state ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """`values` (n,), a view of a live tensor, are elements `start` to `start + n` of `kind` of the parameter `name`.

    `kind` is "master" or the optimizer's word for a state ("exp_avg", "momentum_buffer", "step", ...). A shard that is
    not `owned` is a copy of what another rank has too; over the ranks the owned ones hold everything once (the one
    element of a "step" excepted, which goes with every shard).
    """

    kind: str
    name: str
    start: int
    values: Tensor
    owned: bool = True


def shards(engine: Engine) -> list[Shard]:
    """Return all that this rank holds. TypeError for an optimizer of DeepSpeed's whose layout is unknown."""
    optimizer: Any = engine.optimizer
    names = {parameter: hf_name(name, engine.module) for name, parameter in engine.module.named_parameters()}
    if hasattr(optimizer, "params_in_partition"):
        return list(_partitioned(optimizer, optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, names))
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return list(_partitioned(optimizer, optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, names))
    first = {expert: _is_first_copy(engine, expert=expert) for expert in {is_expert(name) for name in names.values()}}
    return [
        Shard(kind, names[parameter], 0, values, first[is_expert(names[parameter])])
        for parameter, kind, values in _whole(optimizer)
    ]


def master_weights(engine: Engine) -> dict[str, Tensor]:
    """Return this rank's part of the weights that the optimizer steps: flat views, at most one of a parameter."""
    return {shard.name: shard.values for shard in shards(engine) if shard.kind == MASTER}


def non_finite_weights(engine: Engine) -> list[str]:
    """Return the parameters in whose part here not every weight that the optimizer steps is a finite number."""
    weights = master_weights(engine)
    finite = torch.stack([values.isfinite().all() for values in weights.values()]).tolist() if weights else []
    return [name for name, good in zip(weights, finite, strict=True) if not good]


def _partitioned(optimizer: Any, partitions: list[Tensor], groups: list[list[Any]], names: Names) -> Iterator[Shard]:
    """Yield the shards of ZeRO-1 and 2 and of bf16: one flat partition a group, cut without regard to parameters."""
    for index, (flat, parameters) in enumerate(zip(partitions, groups, strict=True)):
        states = dict(optimizer.optimizer.state[flat]) if flat in optimizer.optimizer.state else {}
        if _orthogonalises(optimizer, index) and MOMENTUM in states:
            yield from _whole_momenta(optimizer.params_in_partition[index], states.pop(MOMENTUM), names)
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is None:
                continue
            place = mapping.hp_fragment_address
            for kind, values in _vectors(flat, states):
                # a counter has one element, whatever the cut
                cut = values if kind == STEP else values.narrow(0, place.start, place.numel)
                yield Shard(kind, names[parameter], mapping.lp_fragment_address.start if kind != STEP else 0, cut)


def _orthogonalises(optimizer: Any, group: int) -> bool:
    """Return whether ZeRO runs Muon's iteration on whole matrices of this group, with a momentum laid out likewise."""
    inside = getattr(optimizer, "params_in_partition", None)
    return bool(inside and inside[group] and optimizer._is_muon_group(inside[group]))


def _whole_momenta(parameters: list[Any], momentum: Tensor, names: Names) -> Iterator[Shard]:
    """Yield Muon's momentum: whole matrices one after the other. One on a border of partitions is on both ranks."""
    offset = 0
    for parameter in parameters:
        values = momentum.narrow(0, offset, parameter.numel())
        offset += parameter.numel()
        yield Shard(MOMENTUM, names[parameter], 0, values, parameter._hp_mapping.lp_fragment_address.start == 0)


def _whole(optimizer: Any) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
    """Yield (parameter, kind, values) where every rank steps whole parameters: without ZeRO, in any precision."""
    if hasattr(optimizer, "fp32_groups_flat"):  # fp16 or bf16 with DeepSpeed's fused Adam
        for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                for kind, values in _vectors(flat, optimizer.optimizer.state.get(flat, {})):
                    yield parameter, kind, values if kind == STEP else values.narrow(0, offset, parameter.numel())
                offset += parameter.numel()
        return
    if hasattr(optimizer, "fp32_groups"):  # the same with any other optimizer
        pairs = (
            (parameter, master)
            for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            for parameter, master in zip(parameters, masters, strict=True)
        )
    elif isinstance(optimizer, torch.optim.Optimizer):
        pairs = ((parameter, parameter) for group in optimizer.param_groups for parameter in group["params"])
    else:
        raise TypeError(f"checkpoints do not know the layout of DeepSpeed's {type(optimizer).__name__}")
    for parameter, master in pairs:
        for kind, values in _vectors(master, _base_optimizer(optimizer).state.get(master, {})):
            yield parameter, kind, values


def _vectors(master: Tensor, states: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the master weights and what has a value for each of their elements, flat, and counters that are tensors."""
    yield MASTER, master.detach().view(-1)
    for kind, value in states.items():
        if torch.is_tensor(value) and (value.shape == master.shape or value.numel() == 1):
            yield kind, value.detach().view(-1)


def _base_optimizer(optimizer: Any) -> Any:
    """Return torch's optimizer inside DeepSpeed's wrapper, or itself."""
    return getattr(optimizer, "optimizer", optimizer)


def step_counters(engine: Engine) -> list[dict[str, Any]]:
    """Return the mappings with a count of steps under STEP that is a plain number: DeepSpeed's own Adam keeps such."""
    base = _base_optimizer(engine.optimizer)
    places = [*base.param_groups, *(state for state in base.state.values() if isinstance(state, dict))]
    return [place for place in places if isinstance(place.get(STEP), int)]


def create_states(engine: Engine, kinds: set[str]) -> None:
    """Let the optimizer make its states anew, as a first step would; `kinds` are to be written over them."""
    optimizer: Any = engine.optimizer
    base = _base_optimizer(optimizer)
    base.state.clear()
    if kinds <= {MASTER}:
        return  # saved before any step was taken
    tensors = [tensor for group in base.param_groups for tensor in group["params"]]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    base.step()
    for tensor in tensors:
        tensor.grad = None
    partitions: list[list[nn.Parameter]] = getattr(optimizer, "params_in_partition", [])
    for index, parameters in enumerate(partitions):
        if MOMENTUM in kinds and _orthogonalises(optimizer, index):
            flat = base.param_groups[index]["params"][0]
            # DeepSpeed turns it into the gradients' type at the next step
            base.state[flat][MOMENTUM] = torch.zeros(sum(p.numel() for p in parameters), device=flat.device)
    if MOMENTUM in kinds and hasattr(optimizer, "fp32_groups_flat_partition"):
        for group in base.param_groups:  # the bf16 optimizer makes Muon's momentum in its own step, for its partition
            if group.get("use_muon"):
                for flat in group["params"]:
                    base.state[flat].setdefault(MOMENTUM, torch.zeros_like(flat))

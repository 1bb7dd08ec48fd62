"""What the optimizer keeps, parameter by parameter, wherever DeepSpeed has put it.

DeepSpeed spreads the fp32 weights that are stepped (the masters) and the optimizer's states over the ranks as flat
vectors whose cuts depend on the number of ranks, the ZeRO stage and `ep_size`. A `Piece` names the parameter (by its
Hugging Face name, an expert by its global number) and the place in it, so that one layout can read what another wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.hf import hf_name, is_expert

MASTER, MOMENTUM, STEP = "master", "momentum_buffer", "step"
Names = dict[nn.Parameter, str]


@dataclass(frozen=True)
class Piece:
    """`values` (n,), a view of a live tensor, are elements `start` to `start + n` of `kind` of the parameter `name`.

    `kind` is "master" or the optimizer's word for a state ("exp_avg", "momentum_buffer", "step", ...). A piece that is
    not `owned` is a copy of what another rank has too; over the ranks the owned ones hold everything once (the one
    element of a "step" excepted, which goes with every fragment).
    """

    kind: str
    name: str
    start: int
    values: Tensor
    owned: bool = True


def pieces(engine: Any) -> list[Piece]:
    """All that this rank holds. TypeError for an optimizer of DeepSpeed's whose layout is unknown."""
    optimizer = engine.optimizer
    names = {parameter: hf_name(name, engine.module) for name, parameter in engine.module.named_parameters()}
    if hasattr(optimizer, "params_in_partition"):
        return list(_partitioned(optimizer, optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, names))
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        return list(_partitioned(optimizer, optimizer.fp32_groups_flat_partition, optimizer.bf16_groups, names))
    first = {True: _first_copy(engine, expert=True), False: _first_copy(engine, expert=False)}
    return [
        Piece(kind, names[parameter], 0, values, first[is_expert(names[parameter])])
        for parameter, kind, values in _whole(optimizer)
    ]


def _partitioned(
    optimizer: Any, partitions: list[Tensor], groups: list[list[nn.Parameter]], names: Names
) -> Iterator[Piece]:
    """ZeRO-1 and 2, and the bf16 optimizer: one flat partition a group, cut without regard to the parameters."""
    for index, (flat, parameters) in enumerate(zip(partitions, groups, strict=True)):
        states = dict(optimizer.optimizer.state[flat]) if flat in optimizer.optimizer.state else {}
        if _orthogonalises(optimizer, index):
            yield from _whole_momenta(optimizer.params_in_partition[index], states.pop(MOMENTUM, None), names)
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is None:
                continue
            place = mapping.hp_fragment_address
            for kind, values in _vectors(flat, states):
                # a counter has one element, whatever the cut
                cut = values if kind == STEP else values.narrow(0, place.start, place.numel)
                yield Piece(kind, names[parameter], mapping.lp_fragment_address.start if kind != STEP else 0, cut)


def _orthogonalises(optimizer: Any, group: int) -> bool:
    """Whether ZeRO runs Muon's iteration on whole matrices of this group, with a momentum laid out likewise."""
    inside = getattr(optimizer, "params_in_partition", None)
    return bool(inside and inside[group] and optimizer._is_muon_group(inside[group]))


def _whole_momenta(parameters: list[nn.Parameter], momentum: Tensor | None, names: Names) -> Iterator[Piece]:
    """Muon's momentum: whole matrices one after the other. One on a border of partitions is on both ranks."""
    offset = 0
    for parameter in parameters if momentum is not None else ():
        values = momentum.narrow(0, offset, parameter.numel())
        offset += parameter.numel()
        yield Piece(MOMENTUM, names[parameter], 0, values, parameter._hp_mapping.lp_fragment_address.start == 0)


def _whole(optimizer: Any) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
    """(parameter, kind, values) where every rank steps whole parameters: without ZeRO, in any precision."""
    if hasattr(optimizer, "fp32_groups_flat"):  # fp16 or bf16 with DeepSpeed's fused Adam
        for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                for kind, values in _vectors(flat, optimizer.optimizer.state.get(flat, {})):
                    yield parameter, kind, values if kind == STEP else values.narrow(0, offset, parameter.numel())
                offset += parameter.numel()
        return
    if hasattr(optimizer, "fp32_groups"):  # the same with any other
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
        for kind, values in _vectors(master, base_optimizer(optimizer).state.get(master, {})):
            yield parameter, kind, values


def _vectors(master: Tensor, states: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The master and what has a value for each of its elements, flat; and counters that are tensors."""
    yield MASTER, master.detach().view(-1)
    for kind, value in states.items():
        if torch.is_tensor(value) and (value.shape == master.shape or value.numel() == 1):
            yield kind, value.detach().view(-1)


def _first_copy(engine: Any, *, expert: bool) -> bool:
    """Whether this rank is the first of those that hold the same parameters."""
    from deepspeed.utils import groups

    if not expert:
        return engine.global_rank == 0
    name = next(layer.moe.expert_group_name for layer in engine.module.expert_layers())
    return groups._get_expert_data_parallel_rank(name) == 0


def base_optimizer(optimizer: Any) -> Any:
    """torch's optimizer inside DeepSpeed's wrapper, or itself."""
    return getattr(optimizer, "optimizer", optimizer)


def counters(engine: Any) -> list[tuple[dict[str, Any], str]]:
    """(mapping, key) of every count of steps that is a plain number: DeepSpeed's own Adam keeps such."""
    base = base_optimizer(engine.optimizer)
    places = [*base.param_groups, *(state for state in base.state.values() if isinstance(state, dict))]
    return [(place, STEP) for place in places if isinstance(place.get(STEP), int)]


def create_states(engine: Any, kinds: set[str]) -> None:
    """Let the optimizer make its states anew, as a first step would; `kinds` are to be written over them."""
    base = base_optimizer(engine.optimizer)
    base.state.clear()
    if kinds <= {MASTER}:
        return  # saved before any step was taken
    tensors = [tensor for group in base.param_groups for tensor in group["params"]]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    base.step()
    for tensor in tensors:
        tensor.grad = None
    for index, parameters in enumerate(getattr(engine.optimizer, "params_in_partition", ())):
        if MOMENTUM in kinds and _orthogonalises(engine.optimizer, index):
            flat = base.param_groups[index]["params"][0]
            # DeepSpeed turns it into the gradients' type at the next step
            base.state[flat][MOMENTUM] = torch.zeros(sum(p.numel() for p in parameters), device=flat.device)
    if MOMENTUM in kinds and hasattr(engine.optimizer, "fp32_groups_flat_partition"):
        for group in base.param_groups:  # the bf16 optimizer makes Muon's momentum in its own step, for its partition
            if group.get("use_muon"):
                for flat in group["params"]:
                    base.state[flat].setdefault(MOMENTUM, torch.zeros_like(flat))


def publish_masters(engine: Any) -> None:
    """Round the masters into the weights that the network computes with; collective."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups_flat"):
        for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                parameter.data.copy_(flat.detach().narrow(0, offset, parameter.numel()).view_as(parameter))
                offset += parameter.numel()
    elif hasattr(optimizer, "fp32_groups"):
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.data.copy_(master.detach())

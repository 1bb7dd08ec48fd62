"""Which fused kernels all ranks compute with."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import torch

from model import ModelConfig
from model.kernels.check import choose
from training.checkpointing.run_state import RunState
from training.context import RunContext
from training.planning.model_states import DTYPES
from training.processes.process_group import gather_from_ranks


def agree_on_kernels(
    config: ModelConfig, tokens: int, precision: str, earlier: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the operations that every rank can compute with a fused kernel, and a line for each left out; collective.

    `tokens`: of a micro-batch. `earlier`: those that the run has computed with so far, so that a continued run
    computes the same bits; None for a new run.
    """
    if importlib.util.find_spec("triton") is None:
        mine: tuple[list[str], list[str]] = [], ["Triton is not installed"]
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        mine = choose(config, tokens, device, DTYPES[precision], earlier=earlier)
        torch.cuda.empty_cache()
    everybody = gather_from_ranks(mine)
    names = tuple(name for name in mine[0] if all(name in chosen for chosen, _ in everybody))
    lines = list(dict.fromkeys(line for _, lines in everybody for line in lines))
    return names, lines


def with_kernels(context: RunContext, state: RunState | None) -> RunContext:
    """Choose the fused kernels of this session; collective.

    A run that continues has a `state`: its kernels are taken if they are still right here, and it notes the choice.
    """
    options, resolved, say = context.options, context.resolved, context.console.say
    earlier, names, lines = state and state.kernels, (), []
    if options.kernels == "auto" and context.device.kind == "cuda":
        tokens = resolved.micro_batch * options.max_seq_len
        names, lines = agree_on_kernels(context.config, tokens, resolved.precision, earlier)
        say(f"fused kernels: {', '.join(names) or 'none'}")
    for line in lines:
        say(f"  {line}")
    if missing := [name for name in earlier or () if name not in names]:
        say(f"WARNING: so far the run was computed with fused kernels for {', '.join(missing)}: its bits will differ")
    if state is not None:
        state.kernels = list(names)
    return replace(context, kernels=names)

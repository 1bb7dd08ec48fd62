"""What a driver that computes nothing cannot answer, answered for it.

On such a driver dispatch, allocator, streams and the host's waits are real and numbers are not (whatever the memory
held). Only what would stumble over them is replaced, and NCCL by gloo.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

Replacement = tuple[object, str, object]  # where, which name, by what


@contextmanager
def numbers_not_real() -> Iterator[None]:
    """Let train.py, its preflight and `--tune` run in this process; import what it is to run before."""
    with ExitStack() as stack:
        for where, name, other in (*_machine(), *_experts(), *_verdicts(), *_ranks()):
            stack.enter_context(mock.patch.object(where, name, other))
        yield


def _machine() -> list[Replacement]:
    import torch
    import torch.distributed as dist

    from common import hardware
    from training.planning import tune_trial

    init = dist.init_process_group
    return [
        (hardware, "_has_gpu_device", lambda: True),  # there is no /dev/nvidia0
        (dist, "init_process_group", lambda _backend, **more: init("gloo", **more)),
        (torch.special, "entr", torch.neg),  # compiled at run time by NVRTC
        (tune_trial, "_rank", trial_rank),
    ]


def _experts() -> list[Replacement]:
    """Give every expert its even share; of experts on several ranks the busiest what `--plan` assumes."""
    from model import moe
    from training.planning.memory import ROUTING_IMBALANCE

    on_host, after_gate = moe._on_host, moe.DeepSpeedMoE._after_gate

    def even(size_E: Any, routes: int) -> list[int]:
        sizes = on_host(size_E, routes)  # for its wait
        return [moe._padded(routes // len(size_E))] * len(size_E) if size_E.is_cuda else sizes

    def full(layer: Any, gate: Any, args: tuple, output: tuple) -> tuple:
        balance_loss, _, experts, *rest = after_gate(layer, gate, args, output)
        tokens = args[0].shape[0] * layer.top_k / int(gate.wg.weight.shape[0])
        return (balance_loss, moe._padded(int(tokens * ROUTING_IMBALANCE)), experts, *rest)

    return [(moe, "_on_host", even), (moe.DeepSpeedMoE, "_after_gate", full)]


def _verdicts() -> list[Replacement]:
    from model.kernels import check
    from training import rollback
    from training.checkpointing import checkpoint
    from training.monitoring import accumulator
    from training.preflight import step_checks

    return [
        (check, "problem", lambda *_: None),
        (check, "times", lambda *_: (2.0, 1.0)),
        (rollback.NonFiniteMonitor, "check_loss", lambda *_: None),
        (rollback.NonFiniteMonitor, "check_step", lambda *_: None),
        (step_checks, "overfit", lambda trial, rows, _seconds: [trial.step(rows, 1.0).loss] * 2),
        (accumulator.MetricAccumulator, "steps_per_second", lambda _accumulator: 1.0),
        (checkpoint, "non_finite_weights", lambda _engine: []),
    ]


def _ranks() -> list[Replacement]:
    """Answer sums by ones, and questions to all ranks by what they know on the CPU, each after the real call."""
    import torch

    from training import session
    from training.processes import process_group

    summed, any_rank, of_each = (
        process_group.sum_over_ranks,
        process_group.any_rank,
        process_group.any_rank_of_each,
    )
    wants, wanted, gather = session.Session.wants_to_stop, [False], process_group.gather_from_ranks

    def ones(values: Any) -> Any:
        return torch.ones(summed(values).shape, dtype=values.dtype)  # on the CPU, where they are

    def any_flag(flag: bool, device: Any) -> bool:
        any_rank(flag, device)
        return any(gather(flag))

    def noted(self: Any, save_seconds: float) -> bool:
        wanted[0] = wants(self, save_seconds)
        return wanted[0]

    def loss_and_stop(flags: Any) -> list[bool]:
        of_each(flags)
        return [False, any(gather(wanted[0]))]

    found: list[Replacement] = [(session.Session, "wants_to_stop", noted)]
    for plain, other in ((summed, ones), (any_rank, any_flag), (of_each, loss_and_stop)):
        for module in [m for n, m in sys.modules.items() if n.startswith("training.")]:
            if getattr(module, plain.__name__, None) is plain:
                found.append((module, plain.__name__, other))
    return found


def trial_rank(*arguments: Any) -> None:
    """Be a rank of a trial of `--tune`, in a process of its own."""
    from training.planning import tune_trial

    rank = tune_trial._rank
    with numbers_not_real():
        rank(*arguments)
    os._exit(0)  # what CUDA's libraries do at the end of a process fails without a driver

"""Sums over the optimizer steps since the last line of metrics; they survive an interruption in the middle."""

from __future__ import annotations

import torch
from torch import Tensor

from training.engine.protocol import Engine
from training.monitoring import routing
from training.processes.process_group import sum_over_ranks


class MetricAccumulator:
    """Of this rank; `mean_losses` and the routing are read over all ranks.

    `sums` (5,) float64 are the language model's loss, the balancing loss, micro-batches, optimizer steps and seconds.
    They stay on the device while a step runs: reading a number would make the host wait.
    """

    def __init__(self, engine: Engine) -> None:
        self.layers = engine.module.expert_layers()
        self.sums = torch.zeros(5, dtype=torch.float64, device=engine.device)
        routing.forget(self.layers)

    def add_micro_batch(self, lm: Tensor, balance: Tensor | None) -> None:
        """Losses of one micro-batch, scalars on the device."""
        self.sums[0] += lm.detach()
        if balance is not None:
            self.sums[1] += balance.detach()
        self.sums[2] += 1

    def add_step(self, seconds: float) -> None:
        """One optimizer step that took so long."""
        self.sums[3] += 1
        self.sums[4] += seconds

    def mean_losses(self) -> tuple[float, float]:
        """(loss, balancing loss) a micro-batch; collective."""
        lm, balance, count = sum_over_ranks(self.sums[:3]).tolist()
        return lm / count, balance / count

    def steps_per_second(self) -> float:
        """On this rank."""
        steps, seconds = self.sums[3:].tolist()
        return steps / seconds

    def state(self) -> dict[str, Tensor]:
        """For this rank's share of a checkpoint."""
        state = {"window": self.sums}
        if self.layers:
            state["routes"] = torch.stack([layer.route_counts for layer in self.layers])
            if self.layers[0].entropy_sum is not None:
                state["entropy"] = torch.stack([layer.entropy_sum for layer in self.layers])
        return state

    def restore(self, states: list[dict[str, Tensor]]) -> None:
        """Take over what some ranks had: its own, or on rank 0 those of all ranks if their number has changed."""
        routing.forget(self.layers)
        self.sums.zero_()
        for state in states:
            self.sums[:3] += state["window"][:3].to(self.sums.device)
            self.sums[3:] = state["window"][3:].to(self.sums.device)
        for index, layer in enumerate(self.layers):
            for state in states:
                layer.route_counts += state["routes"][index].to(layer.route_counts.device)
            entropies = [state["entropy"][index] for state in states if "entropy" in state]
            if entropies:
                layer.entropy_sum = torch.stack(entropies).sum(0).to(self.sums.device)

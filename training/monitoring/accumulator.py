"""Sums over the optimizer steps since the last line of metrics; they survive an interruption in the middle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from training.engine.protocol import Engine
from training.processes.process_group import sum_over_ranks


class MetricAccumulator:
    """Holds this rank's sums; the losses and the routing are read over all ranks.

    `sums` (5,) float64 are the language model's loss, the balancing loss, micro-batches, optimizer steps and seconds.
    They stay on the device while a step runs: reading a number would make the host wait. What the routers did is
    counted by the expert layers themselves.
    """

    def __init__(self, engine: Engine) -> None:
        self.layers = engine.module.expert_layers()
        self.sums = torch.zeros(5, dtype=torch.float64, device=engine.device)
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.sums.zero_()
        for layer in self.layers:
            layer.route_counts.zero_()
            layer.entropy_sum = None

    def add_micro_batch(self, lm: Tensor, balance: Tensor | None) -> None:
        """Add the losses of one micro-batch, scalars on the device."""
        self.sums[0] += lm.detach()
        if balance is not None:
            self.sums[1] += balance.detach()
        self.sums[2] += 1

    def add_step(self, seconds: float) -> None:
        """Add one optimizer step that took so long."""
        self.sums[3] += 1
        self.sums[4] += seconds

    def mean_losses(self) -> tuple[float, float]:
        """Return the means (loss, balancing loss) over the micro-batches of all ranks; collective."""
        lm, balance, count = sum_over_ranks(self.sums[:3]).tolist()
        return lm / count, balance / count

    def steps_per_second(self) -> float:
        """Return the speed of this rank."""
        steps, seconds = self.sums[3:].tolist()
        return steps / seconds

    def routing(self) -> dict[str, Any]:
        """Return what the routers of all ranks did, as in metrics.jsonl; empty without experts; collective.

        `expert_load[layer][expert]` is an expert's share of the kept routes, `dropped_tokens` the share of all routes
        that exceeded an expert's capacity, `router_entropy[layer]` the mean over the tokens of the router's entropy,
        over ln E: 1 where it has no preference, 0 where it is always certain.
        """
        if not self.layers:
            return {}
        counts = sum_over_ranks(torch.stack([layer.route_counts for layer in self.layers])).double()
        entropy = sum_over_ranks(torch.stack(self._entropies())).double()
        kept = counts[:, 1:]
        tokens = counts.sum(-1) / self.layers[0].top_k
        entropy = entropy / tokens / math.log(kept.shape[1]) if kept.shape[1] > 1 else torch.zeros_like(tokens)
        load = (kept / kept.sum(-1, keepdim=True)).tolist()
        return {
            "dropped_tokens": float(counts[:, 0].sum() / counts.sum()),
            "expert_load": [[round(share, 5) for share in shares] for shares in load],
            "router_entropy": [round(value, 5) for value in entropy.tolist()],
        }

    def state(self) -> dict[str, Tensor]:
        """Return what this rank's share of a checkpoint keeps."""
        state = {"sums": self.sums}
        if self.layers:
            state["routes"] = torch.stack([layer.route_counts for layer in self.layers])
            if entropies := self._entropies():
                state["entropy"] = torch.stack(entropies)
        return state

    def _entropies(self) -> list[Tensor]:
        """Return every layer's sum, none before the first micro-batch."""
        return [layer.entropy_sum for layer in self.layers if layer.entropy_sum is not None]

    def restore(self, states: list[dict[str, Tensor]]) -> None:
        """Take over what some ranks had: its own, or on rank 0 those of all ranks if their number has changed."""
        self.reset()
        for state in states:
            sums = state["sums" if "sums" in state else "window"]  # the name in checkpoints of earlier versions
            self.sums[:3] += sums[:3].to(self.sums.device)
            self.sums[3:] = sums[3:].to(self.sums.device)
        for index, layer in enumerate(self.layers):
            for state in states:
                layer.route_counts += state["routes"][index].to(layer.route_counts.device)
            entropies = [state["entropy"][index] for state in states if "entropy" in state]
            if entropies:
                layer.entropy_sum = torch.stack(entropies).sum(0).to(self.sums.device)

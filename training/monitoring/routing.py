"""What the routers did since the last line of metrics: the load of the experts, dropped routes, entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from model.moe import DeepSpeedMoE
from training.processes.process_group import sum_over_ranks


@dataclass(frozen=True)
class Routing:
    """`load[layer][expert]` is an expert's share of the kept routes, `dropped` the share of all routes that found no
    room, `entropy[layer]` the mean over the tokens of the router's entropy, over ln E: 1 where it has no preference,
    0 where it is always certain.
    """

    load: list[list[float]]
    dropped: float
    entropy: list[float]

    def figures(self) -> dict[str, Any]:
        """As in metrics.jsonl."""
        return {"dropped_tokens": self.dropped, "expert_load": self.load, "router_entropy": self.entropy}


def forget(layers: list[DeepSpeedMoE]) -> None:
    """Start counting anew."""
    for layer in layers:
        layer.route_counts.zero_()
        layer.entropy_sum = None


def read(layers: list[DeepSpeedMoE]) -> Routing | None:
    """Of all ranks since the last call, None without experts; collective."""
    if not layers:
        return None
    counts = sum_over_ranks(torch.stack([layer.route_counts for layer in layers])).double()
    entropy = sum_over_ranks(torch.stack([layer.entropy_sum for layer in layers])).double()
    forget(layers)
    kept = counts[:, 1:]
    share = kept / kept.sum(-1, keepdim=True)
    tokens = counts.sum(-1) / layers[0].top_k
    entropy = entropy / tokens / math.log(kept.shape[1]) if kept.shape[1] > 1 else torch.zeros_like(tokens)
    return Routing(load=_rounded(share), dropped=float(counts[:, 0].sum() / counts.sum()), entropy=_rounded(entropy))


def _rounded(values: torch.Tensor) -> Any:
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [round(value, 5) for value in values.tolist()]

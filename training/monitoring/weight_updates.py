"""What a step does to the weights: how many move at all, and how far, on a sample of those that the optimizer steps.

Low-precision training keeps two sets of weights: the rounded ones that the network computes with, and the
optimizer's own, usually in fp32. An update smaller than half a unit in the last place of the latter is lost, and a run
whose updates are lost has a flat loss and no other symptom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.hf import hf_name
from training.engine.internals import master_weights
from training.engine.protocol import Engine

_SAVED = "sampled:"  # the prefix of a sample among a rank's own numbers in a checkpoint


@dataclass(frozen=True)
class Change:
    """The change of one parameter's sample on one rank: `unchanged` of `weights` values are bit for bit what they were.

    `ratio` is rms(change) / rms(weight); a healthy training has it near 1e-3 a step.
    """

    unchanged: int
    weights: int
    ratio: float


class WeightSample:
    """A fixed sample of this rank's weights, looked at before and after; no call is collective.

    At most `per_tensor` values of each parameter, spread evenly over it: a few MB to keep and no pass over the model.
    """

    def __init__(self, engine: Engine, per_tensor: int = 2048) -> None:
        self.engine, self.per_tensor = engine, per_tensor
        # of one dimension: norms, which start at 1 and would hide the matrices in a root mean square
        self._vectors = {
            hf_name(name, engine.module) for name, parameter in engine.module.named_parameters() if parameter.ndim < 2
        }
        self.snapshot()

    def snapshot(self) -> None:
        """Remember the weights as they are now."""
        self._before = {name: part.clone() for name, part in self._sampled().items()}

    def state(self) -> dict[str, Tensor]:
        """Return the last snapshot, for this rank's share of a checkpoint."""
        return {_SAVED + name: weights for name, weights in self._before.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a snapshot of the same rank of as many, or take one where it has not all that is sampled here."""
        self.snapshot()
        if all(_SAVED + name in state for name in self._before):
            self._before = {name: state[_SAVED + name].to(self.engine.device) for name in self._before}

    def compare(self) -> tuple[float, float]:
        """Return (share of the weights unchanged, mean ratio over the matrices) since the last snapshot; take another.

        The means of both over the ranks are those of the run.
        """
        changes = self.changes()
        self.snapshot()
        total = sum(change.weights for change in changes.values())
        matrices = [change for name, change in changes.items() if name not in self._vectors] or list(changes.values())
        unchanged = sum(change.unchanged for change in changes.values()) / total
        return unchanged, sum(change.ratio for change in matrices) / len(matrices)

    def changes(self) -> dict[str, Change]:
        """Return the change of each parameter that this rank has a part of."""
        now = self._sampled()
        figures = torch.stack([_change(before, now[name]) for name, before in self._before.items()]).tolist()
        return {
            name: Change(int(unchanged), before.numel(), ratio)
            for (name, before), (unchanged, ratio) in zip(self._before.items(), figures, strict=True)
        }

    def _sampled(self) -> dict[str, Tensor]:
        # an odd stride, so that a matrix of even width is not sampled in one column only
        return {
            name: weights[:: weights.numel() // self.per_tensor | 1][: self.per_tensor]
            for name, weights in master_weights(self.engine).items()
            if weights.numel()
        }


def _change(before: Tensor, now: Tensor) -> Tensor:
    """Return (2,): how many are the same, and rms(change) / rms(weight)."""
    same = (now == before).sum().double()
    before = before.double()
    change, size = (now.double() - before).square().mean().sqrt(), before.square().mean().sqrt()
    return torch.stack((same, change / size.clamp_min(torch.finfo(torch.float32).tiny)))

"""train.py with the unlikelihood term of Welleck et al. (2020, arXiv:1908.04319) in its loss.

    python -m benchmarks.recipes.unlikelihood WEIGHT WINDOW FLAGS-OF-TRAIN...

Each token of the last WINDOW of a row that is not the next one is punished by -log(1 - p). The validation loss and the
repetition figures are as ever, so that a run says what the term costs and what it cures.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model import CausalLM
from model.transformer import Losses

_ALMOST_ONE = 1 - 1e-5  # the log of 0 has no gradient


def candidates(ids_BT: Tensor, targets_BT: Tensor, window: int, vocabulary: int) -> Tensor:
    """(B, T), (B, T) -> (B, T, V) booleans: which tokens stand among the last `window` and are not the next one."""
    batch, length = ids_BT.shape
    seen_BTV = torch.zeros(batch, length, vocabulary, dtype=torch.bool)
    for back in range(min(window, length)):
        seen_BTV[:, back:].scatter_(2, ids_BT[:, : length - back, None], True)
    return seen_BTV.scatter_(2, targets_BT[..., None], False)


def punish_repeats(weight: float, window: int) -> None:
    """Add the term to what this process's models are trained on."""

    def forward(
        self: CausalLM, ids_BT: Tensor, targets_BT: Tensor, divisor: float | None = None, counted: int | None = None
    ) -> Losses:
        if divisor is not None or self.config.use_moe:
            raise UserError(
                "unlikelihood is for a dense model on plain text: add --use_moe false, give no conversations"
            )
        logits_BTV = self.packed_logits(ids_BT).float()
        lm = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        seen_BTV = candidates(ids_BT, targets_BT, window, logits_BTV.shape[-1])
        unlikely = -torch.log1p(-logits_BTV.softmax(-1)[seen_BTV].clamp(max=_ALMOST_ONE)).sum() / targets_BT.numel()
        return Losses(lm + weight * unlikely, lm, None)

    setattr(CausalLM, "forward", forward)  # noqa: B010 (no method that may be assigned to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weight", type=float, metavar="WEIGHT")
    parser.add_argument("window", type=int, metavar="WINDOW")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="FLAGS")
    given = parser.parse_args()
    punish_repeats(given.weight, given.window)
    from training.run import main

    sys.exit(main(given.flags, __doc__ or ""))

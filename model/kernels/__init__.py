"""The operations of the network that have a fused form for a GPU, each beside its definition in plain PyTorch.

A network holds one `Kernels`, set once (`CausalLM.use_kernels`); without a word from anyone it is the plain one.
`check.py` decides on a card which fused forms are right and faster there. `device.py` has the Triton code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from model.kernels.likelihood import softmax_error, softmax_error_fused
from model.kernels.norms import add_norm, add_norm_fused, norm_rotate, norm_rotate_fused
from model.kernels.products import Expert, feed_forward, feed_forward_fused, project, project_fused
from model.kernels.routing import (
    combine,
    combine_fused,
    dispatch,
    dispatch_fused,
    router_logits,
    router_logits_fused,
)
from model.packed_attention import PackedRows

_FUSED = {
    "add_norm": add_norm_fused,
    "project": project_fused,
    "norm_rotate": norm_rotate_fused,
    "feed_forward": feed_forward_fused,
    "router_logits": router_logits_fused,
    "dispatch": dispatch_fused,
    "combine": combine_fused,
    "softmax_error": softmax_error_fused,
    "packed_rows": PackedRows.by_document,
}
NAMES = tuple(_FUSED)
"""The operations that have a fused form."""


@dataclass(frozen=True)
class Kernels:
    """The form of each operation that a network computes with; plain PyTorch where nothing else is said."""

    add_norm: Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor]] = add_norm
    project: Callable[[Tensor, Sequence[nn.Linear]], tuple[Tensor, ...]] = project
    norm_rotate: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor] = norm_rotate
    feed_forward: Callable[[Tensor, Sequence[int], Sequence[Expert]], Tensor] = feed_forward
    router_logits: Callable[[Tensor, Tensor], Tensor] = router_logits
    dispatch: Callable[[Tensor, Tensor, Tensor], Tensor] = dispatch
    combine: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = combine
    softmax_error: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = softmax_error
    packed_rows: Callable[..., PackedRows | None] = PackedRows.of

    @classmethod
    def fused(cls, names: Iterable[str] = NAMES) -> Kernels:
        """Return the fused forms of the operations named; the others are plain."""
        return cls(**{name: _FUSED[name] for name in names})

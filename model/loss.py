"""Cross-entropy straight from hidden states, without ever holding all logits.

Shapes in names: S tokens, C tokens of one chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.likelihood import softmax_error

SoftmaxError = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
IGNORED = -100  # the target of a prediction that does not count
CHUNK_ELEMENTS = 2**22  # logits held at a time: 16 MB in fp32, which an allocator still keeps for reuse
FUSED_CHUNK_ELEMENTS = 2**25  # where they are held in 16 bits and nothing beside them: 64 MB


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(h W^T)[target] over `divisor`; the gradient is made chunk by chunk in the forward pass.

    Softmax minus one-hot is all that the backward pass needs, so no logits are kept for it. It goes through the
    matrix products before it is divided (by the number of tokens, mostly): in fp16 a probability over 16,384 tokens
    would round to nothing.
    """

    @staticmethod
    def forward(
        ctx,
        h_SH: Tensor,
        weight_VH: Tensor,
        target_S: Tensor,
        divisor: float,
        error_of: SoftmaxError,
        counted_C: Tensor | None,
    ) -> Tensor:
        """Return the loss in fp32, of the rows `counted_C` or, without them, of all."""
        grad_h, grad_weight = torch.zeros_like(h_SH, dtype=torch.float32), None
        loss = torch.zeros((), dtype=torch.float32, device=h_SH.device)
        elements = CHUNK_ELEMENTS if error_of is softmax_error else FUSED_CHUNK_ELEMENTS
        for chunk in _chunks(len(h_SH if counted_C is None else counted_C), weight_VH.shape[0], elements):
            rows = chunk if counted_C is None else counted_C[chunk]
            h_CH = h_SH[rows]
            log_likelihood, error_CV = error_of(h_CH @ weight_VH.T, target_S[rows])
            loss -= log_likelihood
            grad_h[rows] = (error_CV @ weight_VH).float()
            part_weight = (error_CV.T @ h_CH).float()
            grad_weight = part_weight if grad_weight is None else grad_weight.add_(part_weight)
            del error_CV, part_weight  # before the next chunk takes as much again
        assert grad_weight is not None, "there are no tokens"
        ctx.save_for_backward(grad_h.div_(divisor), grad_weight.div_(divisor))
        ctx.dtypes = h_SH.dtype, weight_VH.dtype
        return loss / divisor

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradients, times the loss scale."""
        grad_h, grad_weight = ctx.saved_tensors
        h_dtype, weight_dtype = ctx.dtypes
        return (grad_h * grad_loss).to(h_dtype), (grad_weight * grad_loss).to(weight_dtype), None, None, None, None


def linear_cross_entropy(
    h_SH: Tensor,
    weight_VH: Tensor,
    target_S: Tensor,
    divisor: float | None = None,
    counted: int | None = None,
    error_of: SoftmaxError = softmax_error,
) -> Tensor:
    """Cross-entropy in nats of the logits h W^T, differentiable in both: the mean over all targets.

    With a `divisor` targets may be IGNORED, and the sum over the others is divided by it. `counted` is how many others
    there are: the host, which knows the corpus, need not wait for a GPU to count them.
    """
    if divisor is None:
        return _LinearCrossEntropy.apply(h_SH, weight_VH, target_S, len(target_S), error_of, None)
    ignored_S = target_S == IGNORED
    if counted is None:
        counted = len(target_S) - int(ignored_S.sum())
    counted_C = ignored_S.sort(stable=True).indices[:counted]
    return _LinearCrossEntropy.apply(h_SH, weight_VH, target_S, divisor, error_of, counted_C)


def cross_entropy_sum(h_SH: Tensor, weight_VH: Tensor, target_S: Tensor) -> Tensor:
    """Summed cross-entropy in nats of the logits h W^T, in fp32, targets of -100 left out: for evaluation."""
    total = torch.zeros((), dtype=torch.float32, device=h_SH.device)
    for rows in _chunks(h_SH.shape[0], weight_VH.shape[0], CHUNK_ELEMENTS):
        total += F.cross_entropy((h_SH[rows] @ weight_VH.T).float(), target_S[rows], reduction="sum")
    return total


def _chunks(tokens: int, vocabulary: int, elements: int) -> Iterator[slice]:
    """Yield the tokens whose logits are held at a time."""
    chunk = max(1, elements // vocabulary)
    return (slice(start, start + chunk) for start in range(0, tokens, chunk))

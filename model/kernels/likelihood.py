"""What the loss makes of logits. Shapes in names: C tokens, V vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.kernels.launch import launch

SMALLEST = 1e-38  # a probability below fp32 counts as 87 nats


def softmax_error(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' summed log probability, in fp32, and softmax minus one-hot (C, V) in the logits' dtype.

    The logits may be overwritten.
    """
    p_CV, target_C1 = logits_CV.softmax(-1, dtype=torch.float32), target_C[:, None]
    dtype = logits_CV.dtype
    del logits_CV  # the caller keeps none: as many bytes less while the errors are made
    p_target_C1 = p_CV.gather(1, target_C1)
    log_likelihood = p_target_C1.clamp_min(SMALLEST).log().sum()
    return log_likelihood, p_CV.scatter_(1, target_C1, p_target_C1 - 1).to(dtype)


def softmax_error_fused(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """`softmax_error` in one kernel, in place of the logits."""
    likelihood_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
    tensors = logits_CV, target_C.contiguous(), likelihood_C
    launch("softmax_error", len(logits_CV), *tensors, math.log(SMALLEST), VOCABULARY=logits_CV.shape[1], BLOCK=1024)
    return likelihood_C.sum(), logits_CV

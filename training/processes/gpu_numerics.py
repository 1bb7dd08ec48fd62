"""What a process that trains on a GPU asks of PyTorch's kernels: the same bits every time, and sums in fp32."""

from __future__ import annotations

import os

import torch

from model import ModelConfig


def reproducible_kernels(config: ModelConfig) -> None:
    """Have a continued run compute the bits of one that was never interrupted; call this before CUDA is used.

    By default the network's own operations leave the order of no sum to chance. DeepSpeed's dispatch of tokens and
    PyTorch's attention without a mask do, and take PyTorch's deterministic algorithms: a third more kernels to start.
    Half-precision matrix products may not be summed in half precision either.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may sum with atomics; read when CUDA starts
    if not config.mask_documents or (config.use_moe and (config.ep_size > 1 or config.capacity_factor > 0)):
        torch.use_deterministic_algorithms(True)
        # or every new tensor would be filled, to find reads of it
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

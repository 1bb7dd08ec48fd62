"""What a process that trains on a GPU asks of PyTorch's kernels: the same bits every time, and sums in fp32."""

from __future__ import annotations

import os

import torch


def reproducible_kernels() -> None:
    """Have a continued run compute the bits of one that was never interrupted; call this before CUDA is used.

    PyTorch's own switch leaves the order of every sum to no chance (above all in attention's backward pass, which
    otherwise adds up the queries' gradients as its blocks happen to finish), and raises an error at an operation that
    cannot do so. Half-precision matrix products may then not be summed in half precision either.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may sum with atomics; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over every new tensor, to find reads of it
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

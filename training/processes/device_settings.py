"""What is set in PyTorch and the C library before training: threads and memory on a CPU, exact kernels on a GPU."""

from __future__ import annotations

import ctypes
import os

import torch

from common.hardware import usable_cores
from model import ModelConfig


def share_cores(processes: int) -> None:
    """Use this process's share of the machine's cores, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // processes))


def use_huge_pages() -> None:
    """Have PyTorch ask the kernel for pages of 2 MB; call this before its first allocation."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Let glibc reuse the large blocks that a step frees instead of returning them to the kernel.

    A step on CPU allocates and frees hundreds of MB (the logits above all), and each return costs page faults at the
    next step: about a sixth of the CPU time of a small model (docs/dev/log.md, also for what it costs in memory). Call
    this when what needs memory only once, such as the preparation of text, is over. Without glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # names of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_max, 0)  # no threshold can be above 32 MB, and larger blocks would be mapped anew each time
    mallopt(m_trim_threshold, 2**30)


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

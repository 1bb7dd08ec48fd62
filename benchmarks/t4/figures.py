"""What two T4s can do: figures that somebody measured and published, each with its place. Nothing here is ours.

`mid` is the measured value that fits this use best, `slow` and `fast` are the bounds between which others were
measured. Where a bound is a step of reasoning and no measurement, `note` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["slow", "mid", "fast"]
LEVELS: tuple[Level, ...] = ("slow", "mid", "fast")


@dataclass(frozen=True)
class Figure:
    """One property of the machine, in `unit`."""

    name: str
    unit: str
    slow: float
    mid: float
    fast: float
    source: str
    note: str = ""

    def at(self, level: Level) -> float:
        """The value of that level."""
        return getattr(self, level)


_PERF = "https://github.com/zzc0721/torch-performance-test-data/blob/main/database.md"
_FORUM = "https://forums.developer.nvidia.com/t/about-gpu-peak-performance/264462"
_DEVICES = "https://github.com/chsasank/device-benchmarks"
_TURING = "https://github.com/ssiu/flash-attention-turing"
_FLASH = "https://github.com/Dao-AILab/flash-attention/issues/416"
_NCCL = "https://github.com/NVIDIA/nccl/issues/398"
_LESSON = "https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html"

MATRIX = Figure(
    "fp16 matrix products",
    "TFLOP/s",
    24.0,
    31.7,
    41.93,
    f"slow: 'About GPU peak performance', cuBLAS 4096 x 4096, mean of 100 in a row, at the 70 W limit ({_FORUM}); "
    f"fast: 'torch-performance-test-data', best size of 1024 to 10240 on Kaggle's T4 x2, PyTorch 2.6 ({_PERF})",
    "mid is the geometric mean of the two: products here alternate with operations that draw less power. Nobody was "
    "found who measured them at 16384 x 512 x 704. Datasheet: 65",
)
BANDWIDTH = Figure(
    "memory",
    "GB/s",
    199.0,
    240.0,
    251.5,
    f"mid: 'Device Benchmarks', copy of a large PyTorch tensor ({_DEVICES}); slow and fast: 'CUDA Kernel Performance "
    "Report' of the public repository 'CUDA Kernel Implementations' (T4 on GCP), tiled transpose and float4 addition",
    "the report's address was not found, its text was. Datasheet: 320",
)
ATTENTION_SHARE = Figure(
    "memory-efficient attention, forward, of the matrix units' peak",
    "",
    0.2777,
    0.2777,
    0.2777,
    f"'FlashAttention Turing', Compute_Throughput.png: T4, length 512, width 128, no mask ({_TURING})",
    "share of 65 TFLOP/s, times the clock that the matrix figure implies. Its ratio to their own kernel's share (1.89) "
    "agrees with that of the times (1.86). Our heads are 64 wide and masked, which is no faster",
)
ATTENTION_BACKWARD = Figure(
    "its backward pass, of the forward rate",
    "",
    0.41,
    0.41,
    0.41,
    f"xformers in flash-attention's own benchmark: 27.00 forward, 11.10 TFLOP/s backward ({_FLASH})",
    "on another card: for a T4 only ratios of two kernels were published",
)
LAUNCH = Figure(
    "start of a kernel on the GPU", "us", 2.7, 2.5, 2.5, "the same report as for memory: kernels on 1,024 elements"
)
HOST = Figure(
    "PyTorch's own work for an operation, on the CPU",
    "us",
    25.0,
    10.0,
    5.0,
    f"'From PyTorch op to kernel launch' ({_LESSON})",
    "a course's range; not of Kaggle's processor",
)
LINK = Figure(
    "PCIe between a GPU and the host, one direction",
    "GB/s",
    3.1,
    6.25,
    11.25,
    f"NCCL issue 398, virtual machine with PCIe 3.0 x16: about 50 Gbit/s plain, 90 Gbit/s from pinned memory ({_NCCL})",
    "no figure of Kaggle's T4 pair was found; without peer-to-peer a byte goes to host memory and from there to the "
    "other GPU, slow assumes one after the other. NCCL issue 428 shows 20 us for a tiny all-reduce between two T4s",
)
SAVING = Figure(
    "a checkpoint",
    "MB/s",
    97.0,
    145.0,
    290.0,
    "docs/dev/reliability.md: 29.0 MB in 0.3, 0.2 and 0.1 s",
    "on a CPU machine's disk",
)
FIGURES = (MATRIX, BANDWIDTH, ATTENTION_SHARE, ATTENTION_BACKWARD, LAUNCH, HOST, LINK, SAVING)
DATASHEET = 65e12
"""FLOP/s of a T4's matrix units in fp16, at the boost clock."""
FLASH_FORWARD = 1.86
"""FlashAttention Turing over the memory-efficient kernel, length 512, width 128, forward; the same source."""


@dataclass(frozen=True)
class Machine:
    """Rates to price operations with, in FLOP/s, bytes/s and seconds."""

    matrix: float
    attention: float
    attention_backward: float
    bandwidth: float
    launch: float
    link: float = float("inf")
    host: float = 0.0
    saving: float = float("inf")


def t4(level: Level) -> Machine:
    """A T4 of Kaggle's pair, all figures at their slow, mid or fast value."""
    matrix = MATRIX.at(level) * 1e12
    attention = ATTENTION_SHARE.at(level) * DATASHEET * matrix / (MATRIX.fast * 1e12)
    return Machine(
        matrix,
        attention,
        attention * ATTENTION_BACKWARD.at(level),
        BANDWIDTH.at(level) * 1e9,
        LAUNCH.at(level) * 1e-6,
        LINK.at(level) * 1e9,
        HOST.at(level) * 1e-6,
        SAVING.at(level) * 1e6,
    )

"""What the machine can do: the accelerator that DeepSpeed will use, its memory, precisions and datasheet speed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Dense datasheet peaks in TFLOP/s: (fp32, fp16 with fp32 accumulation, bf16). Consumer cards halve their tensor cores
# when they accumulate in fp32, which is what training does; some datasheets advertise the other figure.
_PEAK_TFLOPS: dict[str, tuple[float, float, float | None]] = {
    "T4": (8.1, 65, None),
    "P100-PCIE": (9.3, 18.7, None),
    "P100-SXM2": (10.6, 21.2, None),
    "V100-PCIE": (14, 112, None),
    "V100-SXM2": (15.7, 125, None),
    "A10": (31.2, 125, 125),
    "A10G": (35, 70, 70),
    "A100": (19.5, 312, 312),
    "L4": (30.3, 121, 121),
    "L40S": (91.6, 362, 362),
    "H100": (67, 989, 989),
    "H100 PCIe": (51, 756, 756),
    "H200": (67, 989, 989),
    "RTX 2060": (6.5, 25.8, None),
    "RTX 2070": (7.5, 29.9, None),
    "RTX 2080": (10.1, 40.3, None),
    "RTX 2080 Ti": (13.4, 53.8, None),
    "RTX 3060": (12.7, 25.5, 25.5),
    "RTX 3060 Ti": (16.2, 32.4, 32.4),
    "RTX 3070": (20.3, 40.6, 40.6),
    "RTX 3080": (29.8, 59.5, 59.5),
    "RTX 3080 Ti": (34.1, 68.2, 68.2),
    "RTX 3090": (35.6, 71, 71),
    "RTX 3090 Ti": (40, 80, 80),
    "RTX 4060": (15.1, 30.2, 30.2),
    "RTX 4060 Ti": (22.1, 44.1, 44.1),
    "RTX 4070": (29.1, 58.3, 58.3),
    "RTX 4070 Ti": (40.1, 80.2, 80.2),
    "RTX 4080": (48.7, 97.5, 97.5),
    "RTX 4090": (82.6, 165.2, 165.2),
}
_MAKER = re.compile(r"^(NVIDIA |Tesla |GeForce )*")
# what follows a model without making it another: board, memory size and type
_VARIANT = re.compile(r"([- ](\d+GB|HBM\w+|PCIE|PCIe|SXM\d))*$")


@dataclass(frozen=True)
class Device:
    """The accelerator of this machine; with GPUs of several kinds, the least of each figure."""

    kind: str
    """"cuda" or "cpu"."""
    count: int
    """GPUs, or the CPU cores this process may use."""
    name: str
    memory_bytes: int
    """The memory of one GPU; on a CPU all the memory, which the processes share."""
    compute_capability: tuple[int, int] | None
    bf16_fast: bool
    """Whether the hardware computes in bf16; PyTorch also emulates it, slowly, and calls that supported."""
    fp16_supported: bool
    has_compiler: bool
    """Whether there is a C++ compiler, to build DeepSpeed's own optimizers and CPU collectives with."""
    peak_flops: dict[str, float] | None
    """Datasheet peak by "fp32", "fp16", "bf16"; None where the table has no such card."""

    @property
    def summary(self) -> str:
        """One line for the user, e.g. "2 x Tesla T4 (14.7 GiB, compute capability 7.5)"."""
        memory = f"{self.memory_bytes / 2**30:.1f} GiB"
        if self.compute_capability is None:
            return f"{self.name} ({self.count} cores, {memory})"
        return f"{self.count} x {self.name} ({memory}, compute capability {dotted(self.compute_capability)})"


def detect() -> Device:
    """Return the accelerator that DeepSpeed chooses: CUDA where there is one, unless DS_ACCELERATOR=cpu."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not _has_gpu_device():
        return _detect_cpu()
    import torch  # takes seconds

    return _detect_cuda(torch.cuda) if torch.cuda.is_available() else _detect_cpu()


def _has_gpu_device(dev: Path = Path("/dev")) -> bool:
    """Return whether the kernel shows a GPU that PyTorch may be able to use, of NVIDIA or AMD, or that of WSL."""
    return not dev.is_dir() or any(any(dev.glob(name)) for name in ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd"))


def _detect_cuda(cuda: Any) -> Device:
    gpus = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    weakest = min(gpus, key=lambda gpu: (gpu.major, gpu.minor, gpu.total_memory))
    capability = (weakest.major, weakest.minor)
    return Device(
        kind="cuda",
        count=len(gpus),
        name=weakest.name,
        memory_bytes=min(gpu.total_memory for gpu in gpus),
        compute_capability=capability,
        bf16_fast=capability >= (8, 0),
        fp16_supported=_fp16_on_gpu(capability, os.environ),
        has_compiler=_has_compiler(),
        peak_flops=peak_flops(weakest.name),
    )


def _fp16_on_gpu(capability: tuple[int, int], environment: Mapping[str, str]) -> bool:
    """Follow DeepSpeed's own rule: Volta or later; Pascal (a P100) only for a user who insists."""
    if capability[0] == 6:
        return environment.get("DS_ALLOW_DEPRECATED_FP16") == "1"
    return capability[0] >= 7


def _detect_cpu() -> Device:
    info = _read("/proc/cpuinfo")
    return Device(
        kind="cpu",
        count=usable_cores(),
        name=_cpu_name(info),
        memory_bytes=_memory_bytes(),
        compute_capability=None,
        bf16_fast=_bf16_instructions(info),
        fp16_supported=False,  # DeepSpeed refuses it on nearly every CPU, and nobody should train like that
        has_compiler=_has_compiler(),
        peak_flops=None,
    )


def peak_flops(name: str) -> dict[str, float] | None:
    """Return the datasheet peak FLOP/s of the GPU called `name`; None if the table does not have exactly this card.

    Laptop, SUPER and MIG variants are other cards: better no figure than a wrong one.
    """
    model = _MAKER.sub("", name)
    for known in sorted(_PEAK_TFLOPS, key=len, reverse=True):
        if model.startswith(known) and _VARIANT.match(model, len(known)):
            fp32, fp16, bf16 = _PEAK_TFLOPS[known]
            peaks = {"fp32": fp32, "fp16": fp16, "bf16": bf16}
            return {kind: tflops * 1e12 for kind, tflops in peaks.items() if tflops is not None}
    return None


def dotted(capability: tuple[int, int]) -> str:
    """Return (7, 5) as "7.5"."""
    return f"{capability[0]}.{capability[1]}"


def _has_compiler() -> bool:
    # $CXX may carry a wrapper or options ("ccache g++"): its first word is what must exist
    words = os.environ.get("CXX", "").split()
    return any(shutil.which(command) for command in [*words[:1], "g++"])


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name(info: str) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found.group(1).strip() if found else "CPU"


def _bf16_instructions(info: str) -> bool:
    """Return whether /proc/cpuinfo lists bf16 instructions; x86 has them under "flags", Arm under "Features"."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", info, re.MULTILINE)
    words = set(found.group(1).split()) if found else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def _memory_bytes() -> int:
    """Return the machine's memory, or the container's share of it where that is less."""
    total, limit = psutil.virtual_memory().total, _read("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

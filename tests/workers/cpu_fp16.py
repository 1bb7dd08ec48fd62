"""train.py with fp16 on a CPU, which DeepSpeed refuses: the T4s' recipe without a T4. `cpu_fp16.py FLAGS...`.

Other workers call `allow_fp16` for themselves.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from common import hardware
from common.hardware import Device


def allow_fp16() -> None:
    """Have DeepSpeed and the checks of ours take this process's CPU for one that computes in fp16."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    detect_cpu = hardware._detect_cpu

    def detect() -> Device:
        return replace(detect_cpu(), fp16_supported=True)

    hardware._detect_cpu = detect
    CPU_Accelerator.is_fp16_supported = lambda self: True


if __name__ == "__main__":
    from training.run import main

    allow_fp16()
    sys.exit(main(sys.argv[1:], ""))

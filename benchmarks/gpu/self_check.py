"""The machine, and its fused kernels beside their plain forms: what a run does as it starts, with all figures.

`python -m benchmarks.gpu.self_check OUT.json TOKENS NULL`; NULL is 1 on a driver that computes nothing.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.null_driver import numbers_not_real
from common.hardware import detect
from common.nvidia import find_driver
from model import ModelConfig
from model.kernels import NAMES
from model.kernels.check import difference, make_case, shapes, times
from training.planning.model_states import DTYPES


def machine() -> dict[str, Any]:
    """Return the GPUs, and the versions of what drives them."""
    device, driver = detect(), find_driver()
    return {
        "summary": device.summary,
        "gpus": device.count if device.kind == "cuda" else 0,
        "bf16_fast": device.bf16_fast,
        "driver": driver.version if driver else "",
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in ("torch", "deepspeed", "triton")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def compare(name: str, tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return a kernel's largest difference, in units of what is allowed, and milliseconds of both forms."""
    config, device = ModelConfig(), torch.device("cuda")
    try:
        sizes = shapes(config, tokens)
        apart = max(difference(make_case(name, shape, count), name, device, dtype) for shape, count in sizes)
        plain, fused = times(name, config, tokens, device, dtype)
    except Exception as error:  # whatever a compiler or a driver may raise
        message = next(iter(str(error).strip().splitlines()), "no message")
        return {"name": name, "problem": f"{type(error).__name__}: {message[:120]}"}
    return {"name": name, "apart": apart, "plain_ms": plain, "fused_ms": fused}


def main(out: Path, tokens: int) -> None:
    """Write the machine and the kernels of each precision that it is fast in."""
    found = machine()
    for precision in ("fp16", "bf16") if found["bf16_fast"] else ("fp16",):
        found[precision] = [compare(name, tokens, DTYPES[precision]) for name in NAMES] if found["gpus"] else []
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    with numbers_not_real() if sys.argv[3] == "1" else nullcontext():
        main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # without a real driver, what CUDA's libraries do at the end of a process fails

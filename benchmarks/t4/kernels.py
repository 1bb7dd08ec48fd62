# pyright: reportMissingImports=false
"""The fused kernels, compiled ahead for GPUs that need not be at hand: registers, spills and shared memory of each.

    python -m benchmarks.t4.kernels [--capability 75 80 90] [--dtype float16]

Shapes are the default model's; the machine code says what it takes. Needs Triton, no GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from model import ModelConfig
from model.kernels import NAMES, Kernels, likelihood, norms, products, routing
from model.kernels.check import make_case

TOKENS = 512
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Launch:
    """One start of a kernel."""

    name: str
    programs: int
    arguments: tuple[Any, ...]
    warps: int
    sizes: dict[str, int | bool]

    @property
    def bytes(self) -> float:
        """Bytes that it reads and writes: every tensor once, or as many of its rows as programs read."""
        return float(sum(t.numel() * t.element_size() for t in self.arguments if isinstance(t, Tensor)))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches of fused operations, which need no device for it."""
    found: list[Launch] = []

    def note(name: str, programs: int, *arguments: Any, warps: int = 4, **sizes: int | bool) -> None:
        found.append(Launch(name, programs, arguments, warps, sizes))

    with ExitStack() as stack:
        for module in (likelihood, norms, products, routing):
            stack.enter_context(mock.patch.object(module, "launch", note))
        yield found


def launches(config: ModelConfig, dtype: torch.dtype) -> dict[str, Launch]:
    """Return a launch of every kernel, as the network starts it."""
    with recorded() as found:
        for name in NAMES:
            if name != "packed_rows":
                make_case(name, config, TOKENS).on(torch.device("meta"), dtype).run(Kernels.fused([name]))
    return {f"{launch.name}{'' if launch.sizes.get('ADDS', True) else ', nothing added'}": launch for launch in found}


def compiled(launch: Launch, capability: int) -> dict[str, int]:
    """Return registers, bytes spilled and bytes of shared memory of a kernel's machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.kernels import device

    kernel = getattr(device, launch.name)
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, launch.arguments, strict=False)):
        is_number = not isinstance(value, Tensor)
        signature[name] = ("fp32" if isinstance(value, float) else "i32") if is_number else _TYPES[value.dtype]
        if not is_number or (isinstance(value, int) and value % 16 == 0):
            aligned[place,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(launch.sizes, "constexpr")
    source = ASTSource(kernel, signature, constexprs=dict(launch.sizes), attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.warps})
    return _resources(result.asm["cubin"]) | {"shared": result.metadata.shared}


def _resources(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", str(binary)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = _USAGE.findall(said)[0]
    return {"registers": int(registers), "spilled": int(stack)}


def main(argv: Sequence[str]) -> int:
    """Print the table; return 1 if a kernel spills registers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", default=[75, 80, 90])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    args = parser.parse_args(argv)
    print("| kernel | " + " | ".join(f"sm_{c}: registers, spilled, shared" for c in args.capability) + " |")
    print("|---" * (1 + len(args.capability)) + "|", flush=True)
    spilled = 0
    for name, launch in launches(ModelConfig(), getattr(torch, args.dtype)).items():
        found = [compiled(launch, capability) for capability in args.capability]
        spilled += sum(one["spilled"] for one in found)
        cells = [f"{one['registers']}, {one['spilled']}, {one['shared']:,}" for one in found]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The lines that `benchmarks.gpu.check` prints as it goes and, last, as one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

OK, WARNED, FAILED, RAN = "ok", "warn", "FAILED", "ran"
NOT_HERE = "not on this driver"
"""In place of a figure that a driver that computes nothing cannot have."""
HEADER = "| step | | found | s |\n|---|---|---|---|"


@dataclass(frozen=True)
class Line:
    """One thing that a step has found. `RAN` is for a path that went to its end where the driver knows no numbers."""

    step: str
    verdict: str
    found: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Since the step's line before, or since its beginning."""

    def __str__(self) -> str:
        """Return a row of the table."""
        found = " ".join(self.found.split()).replace("|", "/")
        return f"| {self.step} | {self.verdict} | {found} | {self.seconds:.0f} |"

    def as_json(self) -> dict[str, Any]:
        """Return what the JSON keeps."""
        return asdict(self) | {"seconds": round(self.seconds, 1)}


def table(lines: Iterable[Line]) -> str:
    """Return the whole table."""
    return "\n".join([HEADER, *map(str, lines)])


def summed_up(lines: list[Line], seconds: float, planned: float) -> str:
    """Return how it ended, in one sentence."""
    count = {verdict: sum(line.verdict == verdict for line in lines) for verdict in (OK, RAN, WARNED, FAILED)}
    said = ", ".join(f"{number} {verdict}" for verdict, number in count.items() if number)
    return f"{said or 'nothing tried'}; {seconds:.0f} s of {planned:.0f} planned"


_KINDS = (
    ("attention", ("fmha", "flash", "attention")),
    ("matrix products", ("gemm", "gemv", "xmma", "cutlass", "splitk", "cublas")),
    ("communication", ("nccl",)),
    ("copies", ("memcpy", "memset", "copy_kernel", "copybuffer")),
    ("optimizer", ("adam", "multi_tensor")),
    ("fused kernels", ("add_norm", "norm_rotate", "swiglu", "router_", "gather_sum", "combine_", "softmax_error")),
)


def by_kind(kernels: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the milliseconds of a profile's kernels by what they do, the longest first; "other" is elementwise."""
    found: dict[str, float] = {}
    for kernel in kernels:
        name = kernel["name"].lower()
        kind = next((kind for kind, words in _KINDS if any(word in name for word in words)), "other")
        found[kind] = found.get(kind, 0.0) + kernel["ms"]
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))

"""train.py that counts what its ranks send: BUFUDU_SPEED_SCALING=DIR, where each rank leaves rankN.json.

deepspeed --module benchmarks.speed.scaling_child FLAGS-OF-TRAIN...
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "BUFUDU_SPEED_SCALING"
PAYLOADS: dict[str, tuple[str, int]] = {
    "all_reduce": ("tensor", 0),
    "reduce": ("tensor", 0),
    "broadcast": ("tensor", 0),
    "all_reduce_coalesced": ("tensors", 0),
    "reduce_scatter_tensor": ("input", 1),
    "reduce_scatter": ("input_list", 1),
    "all_gather_into_tensor": ("output_tensor", 0),
    "all_gather": ("tensor_list", 0),
    "all_to_all_single": ("input", 1),
    "all_to_all": ("input_tensor_list", 1),
}
"""What a collective is about: the name and the place of the argument that has the size of the whole payload."""


def nbytes(payload: Any) -> int:
    """Bytes of a tensor or of several."""
    return payload.nbytes if hasattr(payload, "nbytes") else sum(map(nbytes, payload))


class Counted:
    """Payload bytes, calls and seconds of the collectives of this process, by name."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of torch.distributed, counted before it runs."""
        keyword, place = PAYLOADS[name]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.bytes[name] += nbytes(kwargs[keyword] if keyword in kwargs else args[place])
            self.calls[name] += 1
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


def watch(counted: Counted, folder: Path) -> None:
    """Count every collective, and note after each optimizer step what it took."""
    import torch.distributed as dist

    for name in PAYLOADS:
        setattr(dist, name, counted.wrap(name, getattr(dist, name)))
    from training.trainer import Trainer

    steps: list[dict[str, Any]] = []
    step = Trainer._step

    def counted_step(trainer: Trainer) -> str | None:
        before, calls, seconds = counted.bytes.copy(), counted.calls.copy(), counted.seconds
        begun, processor = time.perf_counter(), time.process_time()
        trouble = step(trainer)
        steps.append(
            {
                "seconds": time.perf_counter() - begun,
                "processor": time.process_time() - processor,
                "waiting": counted.seconds - seconds,
                "bytes": dict(counted.bytes - before),
                "calls": dict(counted.calls - calls),
            }
        )
        _write(folder / f"rank{trainer.world.rank}.json", steps)
        return trouble

    Trainer._step = counted_step  # pyright: ignore[reportAttributeAccessIssue]


def _write(path: Path, steps: list[dict[str, Any]]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    path.write_text(json.dumps({"peak_bytes": peak, "steps": steps}), encoding="utf-8")


if __name__ == "__main__":
    watch(Counted(), Path(os.environ[FOLDER]))
    from training.run import main

    sys.exit(main(sys.argv[1:], __doc__ or ""))

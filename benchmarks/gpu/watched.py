"""One process of a watched train.py: `python -m benchmarks.gpu.watched FIGURES.json WATCH FLAGS...`.

It is train.py with these flags; FIGURES.json gets what was seen: memory, and as far as WATCH (the JSON of a `Watch`)
asks for it, the waits of a step and the kernels of a step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import null_driver

SIGNALLED = ".signalled"  # the suffix of the file that holds the time of a signal


@dataclass(frozen=True)
class Watch:
    """What to do in the process beside training."""

    null_driver: bool = False
    """Replace what stumbles over numbers that are not real."""
    t4_attention: bool = False
    """Switch off the attention kernels that a T4 does not have."""
    waits: bool = False
    """Count the moments of the last step at which the host waits for the GPU."""
    kernels: bool = False
    """Time the kernels of the last step by name."""
    signal: str = ""
    """Such as SIGTERM: sent by the process to itself in the second micro-batch of step `signal_step`."""
    signal_step: int = 0


class Waits:
    """Counts the waits of a step by the lines of code that wait, by PyTorch's own sync debug mode."""

    def __init__(self) -> None:
        self.sites: Counter[str] = Counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what waits within."""
        import torch

        own = __file__, null_driver.__file__, warnings.__file__

        def note(*_args: Any, **_more: Any) -> None:
            frames = [f for f in traceback.extract_stack(limit=12) if f.filename not in own]
            shown = (f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-3:]))
            self.sites[" < ".join(shown)] += 1

        def explicit(original: Callable[..., Any]) -> Callable[..., Any]:
            def wait(*args: Any, **more: Any) -> Any:
                note()
                return original(*args, **more)

            return wait

        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always")
            stack.enter_context(mock.patch.object(warnings, "showwarning", note))
            for where in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
                stack.enter_context(mock.patch.object(where, "synchronize", explicit(where.synchronize)))
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")


class Kernels:
    """Times a step's kernels by name."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time what the GPU does within; nothing is found where the driver has no tracing."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize()
        for event in profiler.key_averages():
            if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
                ms = event.self_device_time_total / 1000
                self.found.append({"name": event.key, "ms": round(ms, 3), "calls": event.count})
        self.found.sort(key=lambda kernel: -kernel["ms"])


@contextmanager
def _signalled(session: Any, number: int, note: Path) -> Iterator[None]:
    """Send this process a signal in the second micro-batch within; `note` gets the time."""
    plain, seen = session.before_micro_batch, 0

    def before_micro_batch() -> None:
        nonlocal seen
        seen += 1
        plain()
        if seen == 2:
            note.write_text(str(time.time()), encoding="ascii")
            os.kill(os.getpid(), number)

    with mock.patch.object(session, "before_micro_batch", before_micro_batch):
        yield


def main(result: Path, watch: Watch, flags: Sequence[str]) -> int:
    """Run train.py here; return its exit status."""
    import torch

    from training import run
    from training.planning import tune
    from training.trainer import Trainer

    waits, kernels, step, fit, tuned = Waits(), Kernels(), Trainer._step, Trainer.fit, tune.tune

    def watched_step(trainer: Trainer) -> str | None:
        last = trainer.state.step == trainer.total_steps - 1
        here = trainer.state.step == watch.signal_step - 1
        signalled = _signalled(trainer.session, signal.Signals[watch.signal], note) if here else nullcontext()
        with (
            signalled,
            waits.counted() if last and watch.waits else nullcontext(),
            kernels.timed() if last and watch.kernels else nullcontext(),
        ):
            return step(trainer)

    def measured_fit(trainer: Trainer) -> str:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # of the preflight
        return fit(trainer)

    def tuned_here(tuner: Any, began_with: Path, output: Path, _configs: Path) -> int:
        return tuned(tuner, began_with, output, result.parent)  # not among the user's configurations

    note = result.with_suffix(SIGNALLED)
    if watch.t4_attention:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    with ExitStack() as stack:
        if watch.null_driver:
            stack.enter_context(null_driver.numbers_not_real())
        stack.enter_context(mock.patch.object(Trainer, "_step", watched_step))
        stack.enter_context(mock.patch.object(Trainer, "fit", measured_fit))
        stack.enter_context(mock.patch.object(tune, "tune", tuned_here))
        status = run.main(flags, "")
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_initialized() else (0, 0)
    figures = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "outside": total - free - torch.cuda.memory_reserved(),  # the CUDA context, and other programs
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
        "waits": dict(waits.sites.most_common()),
        "kernels": kernels.found,
    }
    result.write_text(json.dumps(figures), encoding="utf-8")
    return status


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), Watch(**json.loads(sys.argv[2])), sys.argv[3:])
    sys.stdout.flush()
    os._exit(status)  # without a real driver, what CUDA's libraries do at the end of a process fails

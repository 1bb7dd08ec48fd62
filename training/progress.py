"""How far a run is: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

from training.console import Console

REFRESH_SECONDS = 2.0  # reading the loss makes the host wait for the device, so not at every step


class Progress:
    """Rank 0's display; does nothing on the others."""

    def __init__(self, console: Console, first_step: int, total_steps: int) -> None:
        self.console, self.step, self.total, self.first = console, first_step, total_steps, first_step
        self.shown = self.started = time.monotonic()
        self.recent_step = first_step
        self.bar = tqdm(total=total_steps, initial=first_step, file=console.stream, disable=not console.interactive,
                        dynamic_ncols=True, unit="step", smoothing=0.1,
                        bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}")

    def advance(self, loss: Callable[[], float], tokens_per_step: int, loss_scale: float | None) -> None:
        """One optimizer step done; `loss` is only called when the display is due."""
        self.step += 1
        self.bar.update(1)
        now = time.monotonic()
        if self.console.interactive and now - self.shown >= REFRESH_SECONDS:
            speed = (self.step - self.recent_step) * tokens_per_step / (now - self.shown)
            scale = "" if loss_scale is None else f", scale {loss_scale:g}"
            self.bar.set_postfix_str(f"loss {loss():.3f}, {speed:,.0f} tokens/s{scale}")
            self.shown, self.recent_step = now, self.step

    def report(self, loss: float, tokens_per_second: float, tokens: int) -> None:
        """The line that goes with a line of metrics."""
        self.console.say(f"step {self.step:,}/{self.total:,}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  "
                         f"{tokens / 1e6:.2f} M tokens  {self._time_left()}")

    def _time_left(self) -> str:
        done = self.step - self.first
        left = (time.monotonic() - self.started) / done * (self.total - self.step)
        return f"{human_time(left)} left" if self.step < self.total else "done"

    def doing(self, what: str) -> None:
        """Explain a pause on the bar."""
        self.bar.set_postfix_str(what)

    def evaluated(self, loss: float, bits_per_byte: float, best: bool) -> None:
        """The result of an evaluation."""
        kept = "  best so far, kept" if best else ""
        self.console.say(f"  validation: loss {loss:.3f} nats a token, {bits_per_byte:.3f} bits a byte{kept}")

    def close(self) -> None:
        """Take the bar down."""
        self.bar.close()


def human_time(seconds: float) -> str:
    """"2 h 05 min", "4 min 10 s", "9 s"."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"

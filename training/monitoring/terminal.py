"""Show how far a run is: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from common.console import Console, human_time
from corpus.ngram_baselines import NGramBaselines
from evaluation.minimal_pairs import PairResult

REFRESH_SECONDS = 2.0  # reading the loss makes the host wait for the device, so not at every step


class Progress:
    """Rank 0's display; does nothing on the others."""

    def __init__(self, console: Console, first_step: int, total_steps: int) -> None:
        self.console, self.step, self.total = console, first_step, total_steps
        self.shown = time.monotonic()
        self.recent_step = first_step
        self.timed: tuple[int, float] | None = None  # the step from which on the time left is reckoned, and its end
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            file=console.stream,
            disable=not console.interactive,
            dynamic_ncols=True,
            unit="step",
            smoothing=0.1,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}",
        )

    def advance(self, loss: Callable[[], float], tokens_per_step: int, loss_scale: float | None) -> None:
        """Count an optimizer step; `loss` is only called when the display is due."""
        self.step += 1
        self.bar.update(1)
        now = time.monotonic()
        self.timed = self.timed or (self.step, now)  # the first step compiles and allocates
        if self.console.interactive and now - self.shown >= REFRESH_SECONDS:
            speed = (self.step - self.recent_step) * tokens_per_step / (now - self.shown)
            scale = "" if loss_scale is None else f", scale {loss_scale:g}"
            self.bar.set_postfix_str(f"loss {loss():.3f}, {speed:,.0f} tokens/s{scale}")
            self.shown, self.recent_step = now, self.step

    def rewind(self, step: int) -> None:
        """Go back to an earlier step."""
        self.step = self.recent_step = step
        self.shown, self.timed = time.monotonic(), None
        self.bar.reset()
        self.bar.update(step)

    def report(self, loss: float, tokens_per_second: float, tokens: int) -> None:
        """Print the line that goes with a line of metrics."""
        self.console.say(
            f"step {self.step:,}/{self.total:,}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  "
            f"{tokens / 1e6:.2f} M tokens  {self._time_left()}"
        )

    def _time_left(self) -> str:
        if self.step >= self.total:
            return "done"
        first, since = self.timed or (self.step, 0.0)
        if self.step == first:
            return "(time left: after the next line)"
        return f"{human_time((time.monotonic() - since) / (self.step - first) * (self.total - self.step))} left"

    def doing(self, what: str) -> None:
        """Explain a pause on the bar."""
        self.bar.set_postfix_str(what)

    def evaluated(self, loss: float, bits_per_byte: float, baselines: NGramBaselines | None, best: bool) -> None:
        """Show the result of an evaluation, beside the two n-gram baselines that it lies between."""
        place = f" ({beside_baselines(loss, baselines)})" if baselines else ""
        kept = "  best so far, kept" if best else ""
        self.console.say(
            f"  validation at step {self.step:,}: loss {loss:.3f} nats a token{place}, "
            f"{bits_per_byte:.3f} bits a byte{kept}"
        )

    def repetition(self, figures: dict[str, Any], prompts: int) -> None:
        """Print repetition on held-out prompts, beside that of the true text in brackets."""
        self.console.say(
            f"  repetition {_share(figures['repetition'])} (true {_share(figures['true_repetition'])})  "
            f"copying {_share(figures['copying'])} ({_share(figures['true_copying'])})  "
            f"distinct-2 {_share(figures['distinct_2'])} ({_share(figures['true_distinct_2'])})  "
            f"greedy loops {figures['loops'] * prompts:.0f} of {prompts}"
        )
        if "answer_tokens" in figures:
            self.console.say(
                f"  answers of {figures['answer_tokens']:.1f} tokens (true {figures['true_answer_tokens']:.1f})  "
                f"empty {_share(figures['empty_answers'])}  without an end {_share(figures['endless_answers'])} "
                f"({_share(figures['true_endless_answers'])})"
            )

    def minimal_pairs(self, found: PairResult, *, conversations: bool) -> None:
        """Print the share of minimal pairs, and what they are made of if it is not all learned."""
        made_of = ", made of questions too, which are not learned" if conversations else ""
        interval = f"95 % interval {found.low:.1%} to {found.high:.1%}; chance is 50 %"
        self.console.say(f"  minimal pairs: {found.share:.1%} of {found.pairs:,}{made_of} ({interval})")

    def close(self) -> None:
        """Take the bar down."""
        self.bar.close()


MEANINGS = {
    "above_uniform": "no better than guessing",
    "below_uniform": "it does not know yet how frequent each token is",
    "below_unigram": "it knows frequencies and a little of what came before",
    "below_bigram": "it uses context",
    "below_trigram": "it uses long context",
}


def beside_baselines(loss: float, baselines: NGramBaselines) -> str:
    """Return the baselines around the loss and what that means: "bigram 4.10, trigram 3.66: it uses context"."""
    result = baselines.compare(loss)
    place = list(MEANINGS).index(result)
    nearest = list(baselines.losses().items())[max(0, min(place - 1, 2)) :][: 2 if place else 1]
    return ", ".join(f"{name} {nats:.2f}" for name, nats in nearest) + f": {MEANINGS[result]}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"

"""What a run was started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.console import Console
from common.hardware import Device
from corpus.shards import Corpus
from model import ModelConfig
from training.config.command_line import Options
from training.config.resolve import Resolved
from training.processes.process_group import World
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog


@dataclass(frozen=True)
class RunContext:
    """Chosen, opened and resolved before anything is built; the same on every rank but for its place in the world."""

    options: Options
    output: Path
    config: ModelConfig
    resolved: Resolved
    corpus: Corpus
    world: World
    device: Device
    console: Console
    stop: StopRequest
    watchdog: Watchdog
    kernels: tuple[str, ...] = ()
    """The operations that the network computes with fused kernels."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step, over all ranks and accumulated micro-batches."""
        return self.resolved.train_batch * self.options.max_seq_len

    @property
    def unigram(self) -> float:
        """The unigram baseline: the loss of a model that knows only token frequencies, in nats a token."""
        manifest = self.corpus.manifest
        return manifest.ngram_baselines.unigram if manifest.ngram_baselines else manifest.entropy_nats

    def bytes_per_token(self, split: str) -> float:
        """Return what turns nats a target into bits a byte, which do not depend on the tokenizer."""
        return self.corpus.manifest.splits[split].bytes_per_target

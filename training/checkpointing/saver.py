"""What is kept of a run while it trains: checkpoints and the best model, and what the user hears about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from model import ModelConfig
from training.checkpointing import checkpoint
from training.checkpointing.export import export_model
from training.checkpointing.run_state import RunState
from training.checkpointing.write_failures import DiskFull
from training.engine.protocol import Engine

SAVE_SECONDS = 300.0  # without a sign of progress writing is stuck; a file system may have a bad day
_DISK_SPEED = 100e6  # bytes a second, written, flushed and read back; assumed of a slow disk


class Saver:
    """Writes a run's checkpoints and its model. Every rank has one; all writing is collective."""

    def __init__(
        self, engine: Engine, output: Path, *, keep_last: int, expected_bytes: int, say: Callable[[str], None]
    ) -> None:
        self.engine, self.output, self.keep_last, self.say = engine, output, keep_last, say
        self.saved_step: int | None = None
        self.last_good: Path | None = None  # the checkpoint that was written or loaded last
        self.seconds = expected_bytes / _DISK_SPEED  # that a save takes at most, estimated until one was measured

    def save(self, state: RunState, local: dict[str, Tensor], *, if_full: str) -> bool:
        """Write a checkpoint; collective. `local` are this rank's own numbers.

        Return False, with those before it still there, if it could not be written; `if_full` says what happens then.
        NotFinite if the weights are not fit to be kept.
        """
        try:
            saved = checkpoint.save(
                self.engine, self.output / "checkpoints", state, self.keep_last, local, self.last_good
            )
        except DiskFull as error:
            self.say(f"  NOT SAVED: {error}; the checkpoints before it are whole; {if_full}")
            return False
        self.saved_step, self.last_good = state.step, saved.path
        self.seconds = state.save_seconds = max(0.5 * state.save_seconds, saved.seconds)
        self.say(f"  saved {saved.path} ({saved.bytes / 1e6:,.1f} MB in {saved.seconds:.1f} s)")
        return True

    def export(self, config: ModelConfig, tokenizer: Path) -> bool:
        """Write model/. Return False, with the model that was there still there, if it could not be written."""
        folder = self.output / "model"
        try:
            export_model(self.engine, config, tokenizer, folder)
        except DiskFull as error:
            self.say(f"  NOT KEPT as the best model: {error}; what is in {folder} is whole")
            return False
        return True

    def has_model(self) -> bool:
        """Return whether a model was written."""
        return (self.output / "model" / "model.safetensors").is_file()

    def load(self, path: Path, state: RunState) -> checkpoint.Local:
        """Put the engine where checkpoint `path`, whose state is `state`, left it; collective."""
        self.saved_step, self.last_good = state.step, path
        self.seconds = state.save_seconds or self.seconds
        return checkpoint.load(self.engine, path)

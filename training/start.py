"""What the flags, the files and the machine say of a run before PyTorch is loaded, which takes seconds.

So help and most refusals come at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.console import Console
from common.errors import UserError
from common.hardware import Device, detect
from common.nvidia import find_driver, why_unusable
from model.config import ModelConfig
from training.checkpointing.earlier_runs import check_earlier_run, find
from training.config import command_line, defaults
from training.config.command_line import Options
from training.config.load import load
from training.config.resolve import Draft, check
from training.config.schema import AUTO
from training.config.settings import MICRO, RunFacts
from training.processes.process_group import World


@dataclass(frozen=True)
class Chosen:
    """What a run is to be: no flag contradicts another, and what they leave open is settled."""

    options: Options
    config_path: Path
    why: str
    """Why this configuration, if no flag names one."""
    ds_config: dict[str, Any]
    output: Path
    device: Device

    @property
    def model(self) -> ModelConfig:
        """The network, with the vocabulary of a tokenizer that is trained here; UserError if it cannot be built."""
        return command_line.model_config(self.options, vocab_size=defaults.vocab_size(self.options))

    def checked(self, processes: int, device: Device | None = None) -> Draft:
        """Find every contradiction that does not need the data; `device` is the one to plan for."""
        options, model, device = self.options, self.model, device or self.device
        facts = RunFacts(processes, options.epochs, options.max_steps, self.output, model)

        def checked(config: dict[str, Any]) -> Draft:
            return check(config, facts, device, source=os.path.relpath(self.config_path))

        found = find(self.output, options.resume)
        if self.ds_config.get(MICRO) != AUTO:
            return checked(self.ds_config)
        from training.planning.micro_batch import Memory, fill_in_auto

        memory = Memory(model, device, processes, options.max_seq_len)
        return fill_in_auto(self.ds_config, checked, memory, _micro_batch_of(found))


def _micro_batch_of(found: list[Path]) -> int | None:
    """Return the micro-batch of the newest checkpoint that can be read."""
    from training.checkpointing.checkpoint import read_state

    for path in reversed(found):
        with suppress(UserError):
            return read_state(path).ds_config.get(MICRO)
    return None


@dataclass(frozen=True)
class Start:
    """What is to be done by one of the processes, or what is wrong with it, where other ranks may wait to hear so."""

    world: World
    console: Console
    chosen: Chosen | UserError
    draft: Draft | None = None
    """The checked configuration; --plan and --tune check it for other processes or devices."""


def start(argv: Sequence[str], description: str) -> Start | int:
    """Return what the command line asks for, or 2 if that is refused and all has been said."""
    try:
        world = World.from_environment()
    except UserError as error:
        Console(0).fail(f"train.py: {error}")
        return 2
    console = Console(world.rank)
    try:
        return _start(command_line.parse(argv, description, console.say), world, console)
    except UserError as error:
        if world.size > 1:
            return Start(world, console, error)
        console.fail(f"train.py: {error}")
        return 2


def _start(given: dict[str, Any], world: World, console: Console) -> Start:
    chosen = _choose(given, world.size)
    options, output, device = chosen.options, chosen.output, chosen.device
    if options.plan:
        return Start(world, console, chosen)
    _check_gpus(device, world, console)
    if options.tune is not None:
        return Start(world, console, chosen)
    draft = chosen.checked(world.size)
    check_earlier_run(output, options.resume)
    console.say(f"不复读: {world.size} process{'es' if world.size > 1 else ''} on {device.summary}")
    console.say(f"configuration: {os.path.relpath(chosen.config_path)}{chosen.why}")
    console.say(f"run: {output} (log: {output}/logs/rank0.log)")
    return Start(world, console, chosen, draft)


def check_command(argv: Sequence[str], processes: int) -> Path:
    """Return the DeepSpeed JSON of a command line; UserError if train.py would refuse it before it reads any text."""
    chosen = _choose(command_line.parse(argv, ""), processes)
    chosen.checked(processes)
    return chosen.config_path


def _choose(given: dict[str, Any], processes: int) -> Chosen:
    """Settle what the flags leave open, and raise UserError for flags that contradict each other."""
    device = detect()
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for a GPU, and warn
    path, why = defaults.default_config(device, processes, from_base="init_from" in given)
    path = given.get("deepspeed_config") or path
    ds_config = load(path, given.get("set", []))
    options = command_line.options(given, command_line.file_flags(ds_config, os.path.relpath(path)))
    if options.init_from is not None:
        from training.base_model import with_base

        options = with_base(options)
    output = options.output or Path("runs") / f"{path.stem}-{defaults.data_name(options)}"
    defaults.check_paths(options, output)
    why = "" if options.deepspeed_config else f" ({why}; --deepspeed_config chooses another)"
    return Chosen(options, path, why, ds_config, output, device)


def _check_gpus(device: Device, world: World, console: Console) -> None:
    """Raise UserError for processes that would share a GPU, and for a GPU that a CUDA build cannot use."""
    if device.kind == "cuda":
        if world.local_size > device.count:
            raise UserError(
                f"{world.local_size} processes on {device.count} GPU{'s' if device.count > 1 else ''} of "
                f"{socket.gethostname()}: start one a GPU, deepspeed --num_gpus {device.count} train.py ..."
            )
    elif find_driver() is not None:
        import torch

        if why := why_unusable(torch.__version__, torch.version.cuda):
            if torch.version.cuda is not None:
                raise UserError(why)
            console.say(f"WARNING: {why}; training on the CPU")

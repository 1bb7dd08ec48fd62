"""Measures training processes for test_memory.py: `worker_memory.py SPECS.json FOUND.json`, once a rank.

SPECS holds `model` (ModelConfig's fields), `ds_config` (resolved) and `seq_len` by name, each for an engine of its own;
rank 0 writes what they took. Figures are bytes of resident memory, which follow every allocation and release only with
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set low; `tensors` are DeepSpeed's own, by size and type, and exact.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model import ModelConfig
from training.engine.build import build_engine
from training.processes.process_group import World


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def resident() -> int:
    """Bytes of this process in memory now."""
    gc.collect()
    return _status("VmRSS")


def forget_peak() -> None:
    """`peak` starts anew from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """The most bytes in memory since `forget_peak`."""
    return _status("VmHWM")


def state_bytes(engine: Any) -> dict[str, int]:
    """What ZeRO holds on this rank: the flat weights; master copies, moments and Muon's staged momentum."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "bit16_groups_flat"):  # without ZeRO
        return {}
    masters = optimizer.single_partition_of_fp32_groups
    states = [
        tensor
        for state in optimizer.optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.ndim
    ]
    staged = [entry[0] for entry in optimizer._muon_pending_momentum.values()]
    flats = optimizer.bit16_groups_flat
    return {
        "optimizer": sum(tensor.nbytes for tensor in (*masters, *states, *staged)),
        "weights": sum(tensor.nbytes for tensor in flats),
    }


class Measurement:
    """One engine from before its start to the end of its second optimizer step."""

    def __init__(self, spec: dict[str, Any], world: World) -> None:
        self.config = ModelConfig(**spec["model"])
        self.ds_config = spec["ds_config"]
        self.accumulation = self.ds_config["gradient_accumulation_steps"]
        shape = self.ds_config["train_micro_batch_size_per_gpu"], spec["seq_len"]
        self.ids = torch.randint(3, self.config.vocab_size, shape)
        self.world, self.found = world, {}

    def run(self) -> dict[str, Any]:
        """All figures; the first step is there to make what is made once."""
        self._warm_up()
        empty = resident()
        self.engine = build_engine(self.config, self.ds_config, seed=0, rank=self.world.rank)
        self.found["start"] = resident() - empty
        self._pass_and_step()
        full = resident()
        self.found["states"] = full - empty
        self._pass_and_step(full)
        self._evaluate(resident())
        self.found["tensors"] = state_bytes(self.engine)
        self._end()
        return self.found

    def _warm_up(self) -> None:
        """Libraries come with the first engine of a process, and oneDNN's bf16 kernels with each matrix's size."""
        one_layer = replace(self.config, num_hidden_layers=1)
        self.engine = build_engine(one_layer, self.ds_config, seed=0, rank=self.world.rank)
        self._pass_and_step()
        self._end()

    def _end(self) -> None:
        self.engine.destroy()
        del self.engine

    def _pass_and_step(self, full: int | None = None) -> None:
        forget_peak()
        for micro_step in range(self.accumulation):
            losses = self.engine(self.ids, self.ids)
            self.engine.backward(losses.total)
            del losses
            if micro_step == self.accumulation - 1 and full is not None:
                self.found["pass"] = peak() - full
                self.found["gradients"] = resident() - full
                forget_peak()
            self.engine.step()
        if full is not None:
            self.found["step"] = peak() - full

    def _evaluate(self, full: int) -> None:
        forget_peak()
        self.engine.eval()
        with torch.no_grad():
            self.engine.module.loss_sum(self.ids, self.ids)
        self.found["evaluation"] = peak() - full


def main() -> None:
    """Join the other ranks, measure, write."""
    world = World.from_environment()
    dist.init_process_group("gloo")
    specs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {name: Measurement(spec, world).run() for name, spec in specs.items()}
    if world.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()  # a thread of Gloo that lives at exit ends the process with SIGABRT now and then


if __name__ == "__main__":
    main()

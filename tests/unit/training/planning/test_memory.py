"""The memory estimate beside what processes of the real engine take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from common.hardware import Device
from model import ModelConfig
from training.config.load import load
from training.config.resolve import Resolved, check
from training.config.settings import RunFacts
from training.planning.memory import MemoryEstimate, memory_by_phase
from training.planning.model_states import ModelStates

ROOT = Path(__file__).resolve().parents[4]
CPU = Device(
    kind="cpu",
    count=2,
    name="CPU",
    memory_bytes=2**34,
    compute_capability=None,
    bf16_fast=True,
    fp16_supported=True,
    has_compiler=True,
    peak_flops=None,
)
MOE = ModelConfig(num_hidden_layers=2)
TINY = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    moe_intermediate_size=48,
)
PATIENCE = 900  # seconds, against a hang
WITHIN, SLACK = 0.15, 10 * 2**20  # of the measured figure, and bytes for what is small

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with Linux's /proc")


def resolved(config: ModelConfig, *sets: str, file: str = "t4x2.json", world: int = 1, micro: int = 4) -> Resolved:
    """A file of ds_configs/ for the CPU, with buckets that a small model fills."""
    common = [
        "fp16.enabled=false",
        "bf16.enabled=true",
        "tensorboard=null",
        "train_batch_size=auto",
        "zero_optimization.reduce_bucket_size=4000000",
        f"train_micro_batch_size_per_gpu={micro}",
        "gradient_accumulation_steps=1",
    ]
    facts = RunFacts(
        world_size=world,
        epochs=1,
        max_steps=None,
        output=Path("unused"),
        model=config,
    )
    return check(load(ROOT / "ds_configs" / file, [*common, *sets]), facts, CPU, source=file).resolve(1000)


@dataclass(frozen=True)
class Case:
    config: ModelConfig
    resolved: Resolved
    world: int = 1
    seq_len: int = 256

    def moments(self) -> list[MemoryEstimate]:
        return memory_by_phase(
            self.config, self.resolved, world_size=self.world, seq_len=self.seq_len, device_kind="cpu"
        )


MEASURED = {"experts bf16 ZeRO-2 accumulated": Case(MOE, resolved(MOE, "gradient_accumulation_steps=2"))}
SPLIT = replace(TINY, ep_size=2)
TWO_RANKS = {
    "AdamW": Case(SPLIT, resolved(SPLIT, world=2), 2, 32),
    "Muon": Case(SPLIT, resolved(SPLIT, file="cpu_x2.json", world=2), 2, 32),
}


def start(folder: Path, cases: dict[str, Case], world: int) -> list[subprocess.Popen[bytes]]:
    """The processes that measure `cases` one after the other, each with its output in a file."""
    specs = {
        name: {"model": asdict(case.config), "ds_config": case.resolved.config, "seq_len": case.seq_len}
        for name, case in cases.items()
    }
    folder.mkdir()
    (folder / "specs.json").write_text(json.dumps(specs), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # large blocks go straight back to the kernel, so that resident memory is what is in use
    shared = {
        "PYTHONPATH": ROOT,
        "MALLOC_MMAP_THRESHOLD_": 65536,
        "MALLOC_TRIM_THRESHOLD_": 65536,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": world,
        "LOCAL_SIZE": world,
        "OMP_NUM_THREADS": 1,  # two would wait for each other, spinning, where the other processes run
    }
    child = Path(__file__).resolve().parents[3] / "workers" / "worker_memory.py"
    command = [sys.executable, child, folder / "specs.json", folder / "found.json"]
    started = []
    for rank in range(world):
        own = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        with (folder / f"log{rank}").open("wb") as log:
            started.append(
                subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Measurements by name of the case."""
    folder = tmp_path_factory.mktemp("memory")
    ends = []
    for part, cases, world in (("one", MEASURED, 1), ("two", TWO_RANKS, 2)):
        running = start(folder / part, cases, world)
        try:
            ends += [process.wait(timeout=PATIENCE) for process in running]
        finally:
            for process in running:
                process.kill()
    assert not any(ends), "".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("*/log*"))
    return {
        name: taken
        for part in ("one", "two")
        for name, taken in json.loads((folder / part / "found.json").read_text(encoding="utf-8")).items()
    }


def close(estimated: int, measured: int) -> bool:
    return abs(estimated - measured) <= max(WITHIN * measured, SLACK)


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize("name", MEASURED)
def test_estimate_is_what_a_process_takes(name: str, found) -> None:
    case, measured = MEASURED[name], found[name]
    training, step, evaluation = case.moments()
    states = training.weights + training.optimizer
    masters = 4 * ModelStates(case.config, case.resolved, case.world, "cpu").partition
    estimated = {
        "start": training.weights + masters,
        "states": states,
        "pass": training.total - states,
        "gradients": ModelStates(case.config, case.resolved, case.world, "cpu").gradients,
        "step": step.total - states,
        "evaluation": evaluation.total - states,
    }
    table = {part: (f"{estimated[part] / 2**20:.0f} MiB", f"{measured[part] / 2**20:.0f} MiB") for part in estimated}
    print(table)
    assert all(close(estimated[part], measured[part]) for part in estimated), table
    fullest = measured["states"] + max(measured[part] for part in ("pass", "step", "evaluation"))
    assert max(phase.total for phase in case.moments()) == pytest.approx(fullest, rel=WITHIN)


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_processes_share_the_optimizer_as_estimated(name: str, found) -> None:
    case, tensors = TWO_RANKS[name], found[name]["tensors"]
    training = case.moments()[0]
    # Muon's momentum is of whole matrices: one that lies across the border of two partitions is on both ranks
    assert training.optimizer == pytest.approx(tensors["optimizer"], rel=WITHIN if "Muon" in name else 1e-3)
    assert training.weights == pytest.approx(tensors["weights"], rel=1e-3)


def moment(config: ModelConfig, *sets: str, world: int = 2, micro: int = 4, kind: str = "cuda") -> MemoryEstimate:
    return memory_by_phase(
        config, resolved(config, *sets, world=world, micro=micro), world_size=world, seq_len=64, device_kind=kind
    )[0]


def test_activations_grow_with_the_micro_batch() -> None:
    dense = replace(TINY, use_moe=False)
    one, two, three = (moment(dense, micro=micro) for micro in (256, 384, 512))  # two chunks of logits or more
    assert three.total - two.total == pytest.approx(two.total - one.total, rel=0.01)
    assert three.weights == one.weights and three.optimizer == one.optimizer


def test_more_expert_capacity_takes_more() -> None:
    split = replace(TINY, ep_size=2)  # by DeepSpeed's dispatch; without a capacity as much as the busiest expert needs
    even, double = (moment(replace(split, capacity_factor=factor), micro=32) for factor in (1.0, 2.0))
    assert even.activations < moment(split, micro=32).activations < double.activations


def test_experts_that_are_together_take_the_rows_they_have() -> None:
    assert moment(TINY, micro=32).activations < moment(replace(TINY, ep_size=2), micro=32).activations


def test_a_document_mask_is_kept_once_for_all_layers() -> None:
    with_mask, without = (moment(replace(TINY, mask_documents=mask), micro=32) for mask in (True, False))
    kept = 2 * 32 * 64 * 64
    more = with_mask.activations + with_mask.logits - without.activations - without.logits
    assert TINY.num_hidden_layers > 1 and kept <= more < 2 * kept


def test_zero_stages_share_more_and_more() -> None:
    stages = [resolved(TINY, f"zero_optimization.stage={stage}", world=2) for stage in (0, 1, 2)]
    states = [ModelStates(TINY, each, 2, "cuda") for each in stages]
    numel = states[0].numel
    assert [state.accumulated / numel for state in states] == pytest.approx([2, 2, 1], rel=1e-3)
    assert [state.optimizer / numel for state in states] == pytest.approx([12, 6, 6], rel=1e-3)


def test_experts_on_other_ranks_take_nothing_here() -> None:
    whole, split = moment(TINY), moment(replace(TINY, ep_size=2))
    experts = 2 * 3 * TINY.hidden_size * TINY.moe_intermediate_size * TINY.num_experts * TINY.num_hidden_layers
    assert whole.weights - split.weights == experts // 2
    # half as many experts, whose states are no longer shared by two ranks
    assert split.optimizer == pytest.approx(whole.optimizer, rel=1e-3)


def test_buckets_count_in_full_on_a_gpu_only() -> None:
    gpu, cpu = moment(TINY), moment(TINY, kind="cpu")
    assert gpu.buffers >= 2 * 2 * 4_000_000 > cpu.buffers  # two buckets, for overlap_comm


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_any_number_of_experts_a_token_can_be_traced(choices: int) -> None:
    assert moment(replace(TINY, num_experts_per_tok=choices)).activations > 0

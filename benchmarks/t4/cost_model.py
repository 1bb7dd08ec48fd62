"""How long two T4s would need, from parts: counted operations, priced with figures that others measured on T4s.

No T4 was at hand. The method is checked on this machine's CPU: a pass counted in the same way and priced with the CPU's
own measured rates, beside its measured time.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.t4.check import check_on_cpu, price
from benchmarks.t4.figures import FIGURES, FLASH_FORWARD, LEVELS, MATRIX, Machine, t4
from benchmarks.t4.operations import (
    ELEMENTWISE,
    MOVING,
    Operation,
    OperationCounter,
    count_step,
    fused,
    totals,
)
from benchmarks.t4.report import table
from model import ModelConfig, count_parameters
from model.kernels import NAMES
from stress.chaos.session import ROOT
from training.config.load import load
from training.config.resolve import Resolved, check
from training.config.settings import RunFacts
from training.planning.disk_space import checkpoint_bytes
from training.planning.flops import training_flops_per_token
from training.planning.micro_batch import Memory
from training.planning.model_states import ModelStates
from training.planning.plan import PLANNED_T4X2

__all__ = ["NAME", "add_flags", "measure", "table"]
NAME = "t4"
GPUS, SEQ_LEN = 2, 512
SAMPLES, TOKENS = 1_413_103, 470e6
"""The data of the reference run (docs/dev/reference-run.md): samples, and tokens without padding."""
AIM = 40.0  # minutes an epoch
EVALUATIONS, EVALUATION_TOKENS, SAVE_EVERY = 20, 200_000, 1_000  # train.py's defaults, of a run of one epoch
ADAMW_BYTES = 54
"""Moved for each parameter of a rank's own part in an optimizer step under ZeRO: the norm reads the gradient (2), it is
flattened (4), becomes fp32 (6), is unscaled and clipped (8); AdamW reads gradient, weight and two moments and writes
three of them (28); the weight goes back to fp16 (6)."""
BUCKET_BYTES, KEPT_BYTES = 8, 6
"""Moved for each gradient of a micro-step: into the bucket and divided by the ranks; added to a rank's own part."""


@dataclass(frozen=True)
class Scenario:
    """What is run; each line of the table changes one thing more."""

    title: str
    stage: int = 2
    micro_batch: int = 32
    accumulation: int = 4
    fusion: float = 0.0
    """Share of the gain that a perfect compiler would have on elementwise work."""
    kernels: bool = False
    """Whether all fused kernels of model/kernels are used."""
    masked: bool = True
    flash: bool = False
    muon: bool = False
    moe: bool = True

    def config(self) -> ModelConfig:
        """The default model, masked or not, with or without experts."""
        return ModelConfig(mask_documents=self.masked, use_moe=self.moe)


TODAY = Scenario("ds_configs/t4x2.json with --kernels plain")
FUSED = replace(TODAY, title="the fused kernels", kernels=True)


def changes() -> list[Scenario]:
    """From today to what could be, one change a line."""
    scenarios = [TODAY]
    for title, change in (
        ("the fused kernels", {"kernels": True}),
        ("ZeRO-1: gradients reduced once a step", {"stage": 1}),
        ("micro-batch 64, accumulation 2", {"micro_batch": 64, "accumulation": 2}),
        ("half of what a perfect compiler could fuse of the rest", {"fusion": 0.5}),
        ("a flash kernel for Turing, forward", {"flash": True}),
    ):
        scenarios.append(replace(scenarios[-1], title=title, **change))
    return scenarios


OTHERS = (
    replace(TODAY, title="Muon instead of AdamW", muon=True),
    replace(TODAY, title="the dense model of the same active width", moe=False),
    replace(TODAY, title="documents not masked, nothing else changed", masked=False),
    replace(changes()[-1], title="every change above, with the dense model", moe=False),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Its own flags."""
    parser.add_argument(
        "--t4_tokens", type=float, default=TOKENS, metavar="N", help="of an epoch, without padding (%(default).0f)"
    )
    parser.add_argument("--t4_skip_check", action="store_true", help="leave out the check of the counts on this CPU")


def measure(work: Path, flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Every part of a step at three levels, what each change would bring, and the check on this CPU."""
    begun = time.perf_counter()
    say("t4: counting the operations of a step (a few seconds), then pricing them")
    steps = {level: step_parts(TODAY, t4(level)) for level in LEVELS}
    epochs = {level: epoch(TODAY, t4(level), flags.t4_tokens) for level in LEVELS}
    lines = [
        {
            "title": scenario.title,
            "fits": fits(scenario),
            "cumulative": scenario not in OTHERS,
            **{level: epoch(scenario, t4(level), flags.t4_tokens) for level in LEVELS},
        }
        for scenario in (*changes(), *OTHERS)
    ]
    best = changes()[-1]
    sustained = {
        scenario.title: epoch(scenario, with_matrix_rate(t4("mid"), MATRIX.slow * 1e12), flags.t4_tokens)["minutes"]
        for scenario in (TODAY, FUSED)
    }
    kinds = {kind: asdict(total) for kind, total in totals(_counted(TODAY)).items()}
    checks = []
    if not flags.t4_skip_check:
        for dtype in (torch.float32, torch.bfloat16):
            say(f"t4: checking the counts on this CPU in {dtype}, one thread (about 40 s)")
            checks.append(check_on_cpu(ModelConfig(), dtype))
    return {
        "tokens": flags.t4_tokens,
        "steps": steps,
        "epochs": epochs,
        "lines": lines,
        "kinds": kinds,
        "communicated": {f"ZeRO-{stage}": communicated(replace(TODAY, stage=stage)) for stage in (1, 2)},
        "fused_steps": {level: step_parts(FUSED, t4(level)) for level in LEVELS},
        "sustained": sustained,
        "best": step_parts(best, t4("mid")),
        "fused": asdict(fused(_counted(TODAY))),
        "model_flops": _model_flops(),
        "aim": AIM,
        "figures": [asdict(figure) for figure in FIGURES],
        "floor": floor(flags.t4_tokens),
        "checks": checks,
        "seconds": time.perf_counter() - begun,
    }


@lru_cache
def _count(config: ModelConfig, micro_batch: int, kernels: tuple[str, ...]) -> tuple[Operation, ...]:
    return tuple(count_step(config, micro_batch=micro_batch, seq_len=SEQ_LEN, kernels=kernels))


def _counted(scenario: Scenario) -> tuple[Operation, ...]:
    return _count(scenario.config(), scenario.micro_batch, NAMES if scenario.kernels else ())


def _model_flops() -> float:
    """Of a micro-batch, by the formula that the run's utilisation is counted with."""
    return training_flops_per_token(ModelConfig(), SEQ_LEN) * TODAY.micro_batch * SEQ_LEN


# --- pricing ----------------------------------------------------------------------------------------------------------


def micro_parts(operations: Sequence[Operation], machine: Machine, fusion: float = 0.0) -> dict[str, float]:
    """Seconds of a forward and backward pass by part. `fusion` as in Scenario."""
    parts: defaultdict[str, float] = defaultdict(float)
    for operation in operations:
        way = "backward" if operation.backward else "forward"
        name = operation.kind if operation.kind in (ELEMENTWISE, MOVING) else f"{operation.kind}, {way}"
        parts[name] += price(operation, machine)
    calls = float(len(operations))
    if fusion:
        best = fused(operations)
        light = sum(operation.kind in (ELEMENTWISE, MOVING) for operation in operations)
        share = 1 - fusion * (1 - best.bytes / machine.bandwidth / (parts[ELEMENTWISE] + parts[MOVING]))
        parts[ELEMENTWISE] *= share
        parts[MOVING] *= share
        calls -= fusion * (light - best.calls)
    parts["starts of kernels"] = calls * machine.launch
    return dict(parts)


def with_matrix_rate(machine: Machine, rate: float) -> Machine:
    """The same machine if its matrix units sustain another rate, on which attention depends as well."""
    share = rate / machine.matrix
    return replace(
        machine,
        matrix=rate,
        attention=machine.attention * share,
        attention_backward=machine.attention_backward * share,
    )


def step_parts(scenario: Scenario, machine: Machine) -> dict[str, float]:
    """Seconds of an optimizer step by part, on each of the two GPUs, which work at the same time."""
    if scenario.flash:
        machine = replace(machine, attention=machine.attention * FLASH_FORWARD)
    micro = micro_parts(_counted(scenario), machine, scenario.fusion)
    parts = {name: scenario.accumulation * seconds for name, seconds in micro.items()}
    parameters = count_parameters(scenario.config())[0]
    own = parameters / GPUS if scenario.stage else parameters
    parts["gradients collected"] = (
        scenario.accumulation * (BUCKET_BYTES * parameters + KEPT_BYTES * own) / machine.bandwidth
    )
    parts["gradients reduced (PCIe)"] = reductions(scenario) * exposed(parameters) / machine.link
    parts["weights sent back (PCIe)"] = 2 * (GPUS - 1) / GPUS * parameters / machine.link
    parts["optimizer step"] = optimizer_seconds(scenario, own, machine)
    return parts


def reductions(scenario: Scenario) -> int:
    """Times a step that gradients go over the bus: ZeRO-2 sends them after every micro-batch."""
    return scenario.accumulation if scenario.stage >= 2 else 1


def exposed(parameters: int) -> float:
    """Bytes that a rank sends to reduce fp16 gradients and that no computing hides.

    DeepSpeed all-reduces its buckets whole (counted in the scaling part), which sends 2 (n - 1) / n of them. With
    overlap_comm every bucket but the last goes while the backward pass computes on.
    """
    bucket = int(resolved(TODAY).config["zero_optimization"]["reduce_bucket_size"])
    return 2 * (GPUS - 1) / GPUS * 2 * (parameters % bucket or bucket)


def optimizer_seconds(scenario: Scenario, own: float, machine: Machine) -> float:
    """AdamW moves bytes; Muon also multiplies each of its matrices, and each rank does those of its own part."""
    seconds = ADAMW_BYTES * own / machine.bandwidth
    if scenario.muon:
        seconds += sum(price(operation, machine) + machine.launch for operation in muon_operations()) / GPUS
    return seconds


@lru_cache
def muon_operations() -> tuple[Operation, ...]:
    """DeepSpeed's iteration on every matrix that Muon steps, in fp16 as on a T4."""
    import torch._dynamo
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero.muon.original_muon import zeropower_via_gram_newtonschulz

    from model import CausalLM

    with torch.device("meta"):
        named = list(CausalLM(ModelConfig().for_inference()).named_parameters())
    counter = OperationCounter()
    with (
        counter,
        mock.patch.object(torch._dynamo.config, "disable", True),
        mock.patch.object(get_accelerator(), "is_fp16_supported", lambda: True),
    ):
        for name, parameter in named:
            if parameter.ndim == 2 and "embed" not in name and not name.endswith(".mlp.gate.weight"):
                zeropower_via_gram_newtonschulz(parameter.detach().half(), 5)
    return tuple(counter.operations)


def epoch(scenario: Scenario, machine: Machine, tokens: float) -> dict[str, float]:
    """Minutes of an epoch, of its parts, and tokens a second of both GPUs while they train."""
    step = sum(step_parts(scenario, machine).values())
    batch = scenario.micro_batch * scenario.accumulation * GPUS * SEQ_LEN
    steps = tokens / batch
    forward = [operation for operation in _counted(scenario) if not operation.backward]
    looks = sum(micro_parts(forward, machine, scenario.fusion).values())
    evaluating = EVALUATIONS * EVALUATION_TOKENS / (scenario.micro_batch * SEQ_LEN * GPUS) * looks
    size = checkpoint_bytes(scenario.config(), resolved(scenario))
    saving = (steps // SAVE_EVERY + 1) * size / machine.saving
    minutes = (steps * step + evaluating + saving) / 60
    return {
        "step": step,
        "tokens_per_second": batch / step,
        "training": steps * step / 60,
        "evaluating": evaluating / 60,
        "saving": saving / 60,
        "minutes": minutes,
        "host": len(_counted(scenario)) * machine.host * scenario.accumulation,
    }


def floor(tokens: float) -> dict[str, float]:
    """Minutes of the model's matrix products and attention alone, by the run's own formula, at each matrix rate."""
    flops = training_flops_per_token(ModelConfig(), SEQ_LEN) * tokens
    return {level: flops / (GPUS * t4(level).matrix) / 60 for level in LEVELS}


def resolved(scenario: Scenario) -> Resolved:
    """The scenario's DeepSpeed configuration on two T4s."""
    source = "t4x2_fast.json" if scenario.muon else "t4x2.json"
    config = scenario.config()
    facts = RunFacts(
        world_size=GPUS,
        epochs=1,
        max_steps=None,
        output=Path("unused"),
        model=config,
    )
    sets = [
        "train_batch_size=auto",
        f"train_micro_batch_size_per_gpu={scenario.micro_batch}",
        f"zero_optimization.stage={scenario.stage}",
        f"gradient_accumulation_steps={scenario.accumulation}",
    ]
    return check(load(ROOT / "ds_configs" / source, sets), facts, PLANNED_T4X2, source=source).resolve(SAMPLES)


def fits(scenario: Scenario) -> bool:
    """Whether --plan's memory estimate leaves room on a T4 (without what the CUDA context takes)."""
    phases = Memory(scenario.config(), PLANNED_T4X2, GPUS, SEQ_LEN).phases(resolved(scenario))
    return max(phase.total for phase in phases) < PLANNED_T4X2.memory_bytes


def communicated(scenario: Scenario) -> dict[str, float]:
    """Bytes that a rank sends in a step, hidden or not."""
    states = ModelStates(scenario.config(), resolved(scenario), GPUS, "cuda")
    share = 2 * (GPUS - 1) / GPUS
    return {
        "reduced": reductions(scenario) * share * states.width * states.numel,
        "sent back": share / 2 * states.width * states.numel,
    }

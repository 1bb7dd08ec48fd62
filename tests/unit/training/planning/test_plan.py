"""What `--plan` says, above all for the reference run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.hardware import Device
from model import ModelConfig
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts
from training.planning.flops import training_flops_per_token
from training.planning.micro_batch import Memory
from training.planning.plan import PLANNED_T4X2, Plan

CONFIGS = Path(__file__).resolve().parents[4] / "ds_configs"
CPU = Device(
    kind="cpu",
    count=2,
    name="Some CPU",
    memory_bytes=2**34,
    compute_capability=None,
    bf16_fast=True,
    fp16_supported=False,
    has_compiler=True,
    peak_flops=None,
)
REFERENCE_ROWS = 1_413_103
SMALL = ModelConfig(hidden_size=64, num_hidden_layers=2, use_moe=False)


def plan(
    file: str,
    *sets: str,
    config: ModelConfig = SMALL,
    device: Device = PLANNED_T4X2,
    rows: int = REFERENCE_ROWS,
    seq_len: int = 512,
    world: int = 2,
    **more: Any,
) -> str:
    facts = RunFacts(
        world_size=world,
        epochs=5,
        max_steps=None,
        output=Path("unused"),
        model=config,
    )
    resolved = check(load(CONFIGS / file, list(sets)), facts, device, source=file).resolve(rows)
    memory = Memory(config, device, world, seq_len)
    return "\n".join(Plan(resolved, rows, memory, **more).lines(0.35))


@pytest.fixture(scope="module")
def reference() -> str:
    return plan("t4x2.json", config=ModelConfig())


def test_the_reference_run_has_its_documents_figures(reference: str) -> None:
    assert "44.2 M parameters" in reference
    assert "= 256 rows, 131,072 tokens a step" in reference
    assert "5,520 an epoch (22,080 micro-batches a process), 27,600 in all (5 epochs" in reference
    assert "500 steps, 1.8% of the run" in reference
    assert "export    q8_0 and q4_0 fit; K-quants" in reference
    assert "\n          scheduler.params.total_num_steps: auto -> 27,600 (5 epochs x" in reference


def test_the_reference_run_fits_two_t4s(reference: str) -> None:
    assert re.search(r"fits: [\d.]+ GiB of 14\.74 GiB \(Tesla T4\)", reference)
    parts = [
        _mebibytes(part, reference)
        for part in ("weights", "optimizer", "gradients", "activations", "logits", "buffers")
    ]
    assert sum(parts) == pytest.approx(_mebibytes("total", reference), rel=0.01)


def _mebibytes(part: str, text: str) -> float:
    number, unit = re.search(rf"^  {part} +([\d.]+) (MiB|GiB)", text, re.MULTILINE).groups()
    return float(number) * (1024 if unit == "GiB" else 1)


def test_hours_are_flops_over_peak(reference: str) -> None:
    flops = training_flops_per_token(ModelConfig(), 512) * 27_600 * 256 * 512
    assert f"{flops / (2 * 65e12 * 0.35) / 3600:.1f} hours at a utilisation of 0.35 of 2 x 65 TFLOP/s" in reference


def test_too_large_a_micro_batch_gets_a_hint_that_fits() -> None:
    small_card = replace(PLANNED_T4X2, memory_bytes=2**30)
    sets = ["train_micro_batch_size_per_gpu=128", "gradient_accumulation_steps=1"]
    text = plan("t4x2.json", *sets, device=small_card)
    hint = re.search(r"does NOT fit: .* Use --set (\S+) (\S+): the same 256 rows", text)
    assert hint, text
    assert " fits: " in plan("t4x2.json", *hint.groups(), device=small_card)


def test_a_model_too_large_for_one_row_says_so() -> None:
    text = plan("t4x2.json", "zero_optimization.stage=1", device=replace(PLANNED_T4X2, memory_bytes=2**29))
    assert "does NOT fit" in text and "Not even one row" in text and "zero_optimization.stage=2" in text


def test_hours_without_a_known_peak_need_a_short_run() -> None:
    text = plan("cpu_x2.json", device=CPU)
    assert "no datasheet peak known for Some CPU" in text and "hours" not in text
    assert "of 8.00 GiB (Some CPU)" in text  # two processes share the machine's memory


def test_zero_stages_stand_side_by_side(reference: str) -> None:
    stages = re.search(r"stage 0 / 1 / 2: (\d+) MiB / (\d+) MiB / (\d+) MiB a GPU", reference)
    zero, one, two = map(int, stages.groups())
    assert zero > one > two


def test_the_expected_loss_falls_with_the_tokens_and_is_said_for_both_optimizers() -> None:
    def expected(rows: int) -> list[float]:
        line = next(line for line in plan("t4x2.json", config=ModelConfig(), rows=rows).split("\n") if "loss  " in line)
        return [float(found) for found in re.findall(r"([\d.]+) ±", line)]

    few, many = expected(20_000), expected(REFERENCE_ROWS)
    assert few[0] > many[0] and many[0] < many[1]


def test_a_budget_names_the_best_size() -> None:
    text = plan("t4x2.json", config=ModelConfig(), budget=36_000)
    found = re.search(r"best spent on about ([\d.]+) M active parameters and ([\d.]+) G tokens", text)
    assert found and 20 * float(found[1]) == pytest.approx(1000 * float(found[2]), rel=0.02)
    assert "best spent" not in plan("t4x2.json", config=ModelConfig())
    little = plan("t4x2.json", config=ModelConfig(), rows=20_000, budget=36_000)
    assert "enough for about 2.05 M active parameters and 40.96 M tokens: for more, more text is needed" in little


def test_of_a_model_that_was_trained_before_no_loss_is_expected() -> None:
    assert "expected of prose" not in plan("t4x2.json", from_scratch=False)


def test_an_optimizer_that_the_law_does_not_know_gets_no_expected_loss() -> None:
    rmsprop = ("zero_allow_untested_optimizer=true", 'optimizer={"type":"RMSprop","params":{"lr":1e-3}}')
    assert "expected of prose" not in plan("t4x2.json", *rmsprop)

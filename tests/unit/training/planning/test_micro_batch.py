""" "auto" for the micro-batch: the largest that surely fits, by the plan's estimate."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from model import ModelConfig
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts
from training.planning.micro_batch import CLOSE, Memory, divisors, fill_in_auto, with_micro_batch
from training.planning.plan import PLANNED_T4X2

CONFIG = Path(__file__).parents[4] / "ds_configs" / "t4x2.json"
DENSE = ModelConfig(hidden_size=64, num_hidden_layers=2, use_moe=False, vocab_size=512, intermediate_size=96)
FACTS = RunFacts(2, 1.0, None, Path("runs/x"), ModelConfig(use_moe=False))
SMALL = replace(PLANNED_T4X2, memory_bytes=900 * 2**20)
AUTO = ("train_micro_batch_size_per_gpu=auto", "gradient_accumulation_steps=auto")


def filled(*overrides, device=SMALL, begun_with=None, model=DENSE):
    def checked(config):
        return check(config, FACTS, device, source="t4x2.json")

    return fill_in_auto(load(CONFIG, [*AUTO, *overrides]), checked, Memory(model, device, 2, 128), begun_with)


def test_auto_takes_the_largest_that_surely_fits_and_keeps_the_batch():
    draft = filled()
    micro, accumulation = draft.micro_batch, draft.accumulation
    assert micro * accumulation * 2 == draft.train_batch == 256
    assert 1 < micro < 128
    larger = next(size for size in divisors(128) if size > micro)
    memory = Memory(DENSE, SMALL, 2, 128)
    assert memory.needed(draft) <= CLOSE * SMALL.memory_bytes < memory.needed(with_micro_batch(draft, larger))
    assert f"train_micro_batch_size_per_gpu: auto -> {micro}" in draft.notes[0]


def test_a_run_that_continues_keeps_its_micro_batch():
    assert filled(begun_with=2).micro_batch == 2
    assert filled(begun_with=3).micro_batch == filled().micro_batch  # of another number of processes


def test_a_written_accumulation_decides():
    assert filled("gradient_accumulation_steps=16").micro_batch == 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train_batch_size=255"], "255"),
        (["gradient_accumulation_steps=3"], "256"),
    ],
)
def test_what_cannot_be_worked_out_is_said(overrides, said):
    with pytest.raises(UserError, match=said):
        filled(*overrides)


def test_where_not_even_one_row_fits_it_is_said():
    with pytest.raises(UserError, match="not even one row"):
        filled(device=replace(SMALL, memory_bytes=2**20))

"""Each file of ds_configs/ trains: on as many processes as it is for, changed in nothing but the size of the batch."""

import math
from pathlib import Path

import pytest

from training.config.load import load

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "ds_configs"
FILES = sorted(file.stem for file in CONFIGS.glob("*.json") if not file.stem.startswith("tuned-"))
FP16 = [name for name in FILES if name.startswith("t4")]


@pytest.fixture(params=FILES)
def shipped(request, engine_results):
    return engine_results(1 if "x1" in request.param else 2, request.param)


def test_the_loss_falls(shipped):
    losses = [line["loss"] for line in shipped["lines"]]
    assert losses[0] == pytest.approx(math.log(128), abs=0.15)
    # the same rows each time; the steps with indices 0 and 1 run with rate 0, and each loss is that before its step
    assert losses[0] == losses[1] == losses[2]
    assert losses[2] > losses[3] > losses[4] > losses[5]


def test_no_step_is_skipped_at_the_files_own_loss_scale(shipped):
    assert shipped["lines"][-1]["skipped"] == 0
    assert all(math.isfinite(line["grad_norm"]) for line in shipped["lines"])


def test_every_matrix_is_trained(shipped):
    # a norm's weight of 1 is too coarse in bf16 to move by 2e-4; its master copy does
    moved = {name: change for name, change in shipped["moved"].items() if "norm" not in name}
    assert len(moved) == 1 + 2 * (4 + 1 + 4 * 3)
    assert min(moved.values()) > 0


def test_the_rates_are_those_of_the_plan(shipped, request):
    """Which tells the matrices' rate with Muon; AdamW's half, the last groups, keeps the ratio that the file has."""
    params = load(CONFIGS / f"{request.node.callspec.params['shipped']}.json")["optimizer"]["params"]
    ratio = params["adam_lr"] / params["muon_lr"] if "muon_lr" in params else 1.0
    for line, said in zip(shipped["lines"], shipped["said"], strict=True):
        assert line["lr"][0] == pytest.approx(said, rel=1e-12)
        assert min(line["lr"]) == pytest.approx(said * min(1.0, ratio), rel=1e-12)
        assert max(line["lr"]) == pytest.approx(said * max(1.0, ratio), rel=1e-12)


def test_the_weights_have_the_precision_of_the_file(shipped):
    types = {"fp32": "torch.float32", "fp16": "torch.float16", "bf16": "torch.bfloat16"}
    assert shipped["dtype"] == types[shipped["precision"]]


@pytest.mark.parametrize("name", FP16)
def test_the_t4_files_are_fp16_with_a_dynamic_scale(engine_results, name):
    result = engine_results(1 if "x1" in name else 2, name)
    assert result["precision"] == "fp16"
    assert result["lines"][0]["scale"] == 2**16
    written = load(CONFIGS / f"{name}.json")["gradient_accumulation_steps"]
    assert result["accumulation"] == (2 if written == "auto" else written)


def test_one_t4_trains_as_two_do(engine_results):
    """Twice the accumulation on one process: in fp16, so only about equal."""
    one, two = engine_results(1, "t4x1"), engine_results(2, "t4x2")
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in one["lines"]] == pytest.approx([line[name] for line in two["lines"]], rel=2e-3)

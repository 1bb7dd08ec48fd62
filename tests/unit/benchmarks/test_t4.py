"""The counting and the arithmetic of benchmarks/t4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.t4 import cost_model as t4
from benchmarks.t4.figures import FIGURES, LEVELS, Machine
from benchmarks.t4.figures import t4 as machine
from benchmarks.t4.operations import (
    ATTENTION,
    ELEMENTWISE,
    MATRIX,
    Operation,
    OperationCounter,
    count_step,
    extent,
    fused,
    totals,
)
from model import CausalLM, ModelConfig
from model.kernels import NAMES
from training.planning.flops import training_flops_per_token

SMALL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    moe_intermediate_size=64,
)
FLAT = Machine(matrix=100.0, attention=50.0, attention_backward=25.0, bandwidth=10.0, launch=0.5, link=5.0)


def counted(work):
    with OperationCounter() as counter:
        work()
    return counter.operations


def operation(**more):
    return Operation(**{"name": "add", "kind": ELEMENTWISE, "shapes": "", "flops": 0.0, "bytes": 0.0} | more)


def test_bytes_of_an_addition_and_flops_of_a_product():
    x, y = torch.zeros(8, 16), torch.zeros(16, 4)
    (add,) = counted(lambda: x + x[:1])
    assert add.bytes == 4 * (8 * 16 + 16 + 8 * 16)
    (product,) = counted(lambda: x @ y)
    assert (product.kind, product.flops, product.bytes) == (MATRIX, 2 * 8 * 16 * 4, 4 * (128 + 64 + 32))


def test_views_cost_nothing_and_repeated_values_lie_once():
    x = torch.zeros(8, 16)
    assert counted(lambda: (x.view(16, 8).transpose(0, 1), x[2:], x.expand(3, 8, 16), x.detach())) == []
    assert extent(x.expand(3, 8, 16)) == 4 * 8 * 16


def test_a_look_up_reads_rows_and_not_the_table():
    table, ids = torch.zeros(1000, 16), torch.zeros(3, dtype=torch.long)
    (look_up,) = counted(lambda: table[ids])
    assert look_up.bytes == 2 * 4 * 3 * 16 + 8 * 3


def test_a_compiler_would_not_write_what_only_it_uses():
    x, w = torch.zeros(8, 8), torch.zeros(8, 8)
    chain = counted(lambda: (x * 2 + 1).relu() @ w)
    size = 4 * 64
    assert totals(chain)[ELEMENTWISE].bytes == 6 * size
    assert fused(chain).bytes == 2 * size
    assert fused(chain).calls == 1


def test_a_compiler_must_keep_what_the_backward_pass_needs():
    forward = operation(bytes=20.0, reads=((1, 10),), writes=((2, 10),))
    within = operation(bytes=20.0, reads=((2, 10),), writes=((3, 10),))
    assert fused([forward, within]).bytes == 20
    later = replace(within, backward=True)
    assert fused([forward, later]).bytes == 40


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, use_moe=False)])
def test_flops_agree_with_the_formula_that_runs_are_judged_by(config):
    rows, length = 2, 64
    by_kind = totals(count_step(replace(config, mask_documents=False), micro_batch=rows, seq_len=length))
    formula = training_flops_per_token(config, length) * rows * length
    # the backward pass of attention computes the scores again, which the formula leaves out
    again = 2 * rows * config.num_attention_heads * length**2 * config.head_size * config.num_hidden_layers / 2
    assert by_kind[MATRIX].flops + by_kind[ATTENTION].flops - again == pytest.approx(formula, rel=0.01)


def test_fused_kernels_are_counted_and_do_the_same_products():
    plain, fused_ = (count_step(SMALL, micro_batch=2, seq_len=64, kernels=names) for names in ((), NAMES))
    # the router's product, which is small, is no matrix product there
    assert totals(fused_)[MATRIX].flops == pytest.approx(totals(plain)[MATRIX].flops, rel=0.01)
    assert totals(fused_)[ELEMENTWISE].bytes < totals(plain)[ELEMENTWISE].bytes / 2
    names = {operation.name for operation in fused_}
    assert {"add_norm_forward", "swiglu_backward", "combine_backward", "softmax_error"} <= names


def test_flops_agree_with_pytorch_on_real_tensors():
    model, ids = CausalLM(replace(SMALL, use_moe=False)), torch.zeros(2, 64, dtype=torch.long)

    def work():
        model(ids, ids).total.backward()

    with FlopCounterMode(display=False) as theirs:
        work()
    found = totals(counted(work))[MATRIX]
    products = sum(flops for name, flops in theirs.get_flop_counts()["Global"].items() if "attention" not in str(name))
    assert found.flops == products


def test_an_operation_costs_what_takes_longer():
    assert t4.price(operation(kind=MATRIX, flops=1000.0, bytes=10.0), FLAT) == 10
    assert t4.price(operation(kind=MATRIX, flops=1000.0, bytes=1000.0), FLAT) == 100
    assert t4.price(operation(kind=ATTENTION, flops=100.0), FLAT) == 2
    assert t4.price(operation(kind=ATTENTION, flops=100.0, backward=True), FLAT) == 4


def test_fusion_takes_away_elementwise_time_alone():
    operations = [
        operation(bytes=20.0, reads=((1, 10),), writes=((2, 10),)),
        operation(bytes=20.0, reads=((2, 10),), writes=((3, 10),)),
        operation(kind=MATRIX, flops=500.0, reads=((3, 10),), writes=((4, 10),)),
    ]
    whole, half, none = (t4.micro_parts(operations, FLAT, share) for share in (1.0, 0.5, 0.0))
    assert [parts[ELEMENTWISE] for parts in (none, half, whole)] == pytest.approx([4.0, 3.0, 2.0])
    assert [parts["starts of kernels"] for parts in (none, half, whole)] == pytest.approx([1.5, 1.25, 1.0])
    assert {parts[f"{MATRIX}, forward"] for parts in (none, half, whole)} == {5.0}


def test_zero_1_reduces_once_a_step():
    assert t4.reductions(t4.TODAY) == 4
    assert t4.reductions(replace(t4.TODAY, stage=1)) == 1


def test_slow_is_slower_than_mid_and_fast():
    for figure in FIGURES:
        assert figure.source
        values = [figure.at(level) for level in LEVELS]
        assert values in (sorted(values), sorted(values, reverse=True))
    machines = [machine(level) for level in LEVELS]
    assert machines[0].matrix < machines[1].matrix < machines[2].matrix
    assert machines[0].attention < machines[2].attention


def test_the_table_names_every_part_and_judges_the_aim():
    parts = {"matrix products, forward": 1.0, "elementwise": 3.0}
    minutes = {
        "step": 4.0,
        "tokens_per_second": 100.0,
        "training": 50.0,
        "evaluating": 1.0,
        "saving": 1.0,
        "minutes": 52.0,
        "host": 5.0,
    }
    line = {"title": "as it is", "fits": False, "cumulative": True} | dict.fromkeys(LEVELS, minutes)
    good = {"title": "better", "fits": True, "cumulative": True} | dict.fromkeys(LEVELS, minutes | {"minutes": 30.0})
    result = {
        "steps": dict.fromkeys(LEVELS, parts),
        "epochs": dict.fromkeys(LEVELS, minutes),
        "kinds": {},
        "aim": 40.0,
        "tokens": 1e6,
        "model_flops": 1e12,
        "floor": dict.fromkeys(LEVELS, 9.0),
        "lines": [line, good],
        "checks": [],
        "figures": [],
        "best": parts,
        "fused_steps": dict.fromkeys(LEVELS, parts),
        "sustained": {"as it is": 52.0},
        "communicated": {stage: {"reduced": 2e6, "sent back": 1e6} for stage in ("ZeRO-1", "ZeRO-2")},
    }
    text = "\n".join(t4.table(result))
    assert "| elementwise | 3,000 | 3,000 | 3,000 | 75.0% |" in text
    assert "as it is (does not fit 16 GB) | 52 | 52 | 52 | 100 | - |" in text
    assert "better | 30 | 30 | 30 | 100 | reached (slow) |" in text
    assert "NOT hidden" in text
    assert "elementwise 75%, matrix products, forward 25%" in text
    assert "2 MB of gradients with ZeRO-1" in text

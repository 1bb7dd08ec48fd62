"""What the generation part concludes from texts and times."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.speed import generation
from model import CausalLM, ModelConfig
from model.init import init_weights


@pytest.fixture(scope="module")
def model() -> CausalLM:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        moe_intermediate_size=8,
        initializer_range=0.3,
    )
    model = CausalLM(config)
    init_weights(model, config, 0)
    return model.eval()


def test_the_same_texts_have_no_gap(model):
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    found = generation.agreement(ids, ids.clone(), model)
    assert (found["same_rows"], found["rows"], found["widest_gap"]) == (2, 2, 0.0)


def test_the_gap_is_that_of_the_logits_where_texts_part_first(model):
    ours = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs = ours.clone()
    theirs[1, 5:] = (theirs[1, 5:] + 1) % 50
    found = generation.agreement(ours, theirs, model)
    with torch.no_grad():
        logits = model.logits(ours[1:, :5])[0, -1]
    assert found["same_rows"] == 1
    assert found["widest_gap"] == pytest.approx(float((logits[ours[1, 5]] - logits[theirs[1, 5]]).abs()), abs=1e-5)
    assert found["widest_gap"] > 1e-3


def test_the_table_says_which_texts_agree():
    row = {
        "shape": "demo",
        "precision": "fp32",
        "batch": 16,
        "sampled": False,
        "ours_tokens_per_second": 1200.0,
        "theirs_tokens_per_second": 400.0,
        "ratio": 3.0,
        "same_rows": 16,
        "rows": 16,
        "widest_gap": 0.0,
    }
    parted = row | {"same_rows": 15, "widest_gap": 0.00002}
    head = {"new_tokens": 8, "prompt_tokens": 16, "threads": 2, "rounds": 3, "transformers": "5"}
    lines = generation.table(head | {"rows": [row, parted, row | {"sampled": True}]})
    assert lines[-3].endswith("| 1,200 | 400 | 3.00 | the same |")
    assert "15 of 16 rows the same; parted at a gap of 2e-05" in lines[-2]
    assert "| sampled |" in lines[-1]
    assert lines[-1].endswith("| - |")


def test_flags_have_their_defaults():
    parser = argparse.ArgumentParser()
    generation.add_flags(parser)
    assert parser.parse_args([]).generation_shapes == ["demo", "default", "dense"]
    assert parser.parse_args(["--generation_threads", "1"]).generation_threads == 1

"""What a run takes on the disk, and how it is refused where there is too little space."""

import re

import pytest

from common.errors import UserError
from model import ModelConfig
from training.config.resolve import Resolved
from training.planning.disk_space import checkpoint_bytes, model_bytes, space_line

MB = 10**6


def test_the_announcement_has_what_a_run_takes_at_its_fullest(tmp_path):
    line = space_line(tmp_path, 530 * MB, 155 * MB, 2, 0, free=18_200 * MB)
    assert line == "disk: checkpoints of 0.53 GB, 3 at most and the model: 1.90 GB; 18.20 GB free"


def test_too_little_room_is_refused_with_what_would_help(tmp_path):
    with pytest.raises(UserError) as error:
        space_line(tmp_path, 500 * MB, 100 * MB, 5, 0, free=2_000 * MB)
    assert re.search(
        r"3\.20 GB, but only 2\.00 GB free: free 1\.20 GB more, --keep_last 2, or another --output", str(error.value)
    )
    assert "\n" not in str(error.value)
    space_line(tmp_path, 500 * MB, 100 * MB, 2, 0, free=2_000 * MB)  # the advice holds
    with pytest.raises(UserError):
        space_line(tmp_path, 500 * MB, 100 * MB, 3, 0, free=2_000 * MB)


def test_no_advice_that_would_not_help(tmp_path):
    with pytest.raises(UserError) as error:
        space_line(tmp_path, 500 * MB, 100 * MB, 2, 0, free=900 * MB)
    assert "--keep_last" not in str(error.value)


def test_what_a_run_has_written_already_is_not_needed_again(tmp_path):
    whole = 3 * 500 * MB + 2 * 100 * MB
    with pytest.raises(UserError):
        space_line(tmp_path, 500 * MB, 100 * MB, 2, 0, free=whole - 1)
    assert "written" in space_line(tmp_path, 500 * MB, 100 * MB, 2, 1_100 * MB, free=whole - 1_100 * MB)


CONFIG = ModelConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    moe_intermediate_size=8,
    num_experts=2,
    ep_size=2,
)


def resolved(optimizer, precision="fp32", **params):
    return Resolved({"optimizer": {"type": optimizer, "params": params}, precision: {"enabled": True}}, [], 0)


def test_the_size_of_a_checkpoint_is_that_of_masters_and_states():
    parameters = model_bytes(CONFIG, resolved("AdamW")) // 4
    assert model_bytes(CONFIG, resolved("AdamW", "fp16")) == 2 * parameters
    assert checkpoint_bytes(CONFIG, resolved("AdamW")) == 12 * parameters
    assert checkpoint_bytes(CONFIG, resolved("SGD")) == 4 * parameters
    assert checkpoint_bytes(CONFIG, resolved("SGD", momentum=0.9)) == 8 * parameters
    # Muon has one state for the matrices: q, k, v, o and three of each expert; not for router, embedding and norms
    matrices = 16 * (16 + 8 + 8 + 16) + 2 * 3 * 16 * 8
    assert checkpoint_bytes(CONFIG, resolved("Muon")) == 12 * parameters - 4 * matrices

"""Where a run stands: the batches that it leaves out, and what it may be continued with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from training.checkpointing.run_state import RunState, check_config, check_identity

CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10, "warmup_type": "linear"}},
    "zero_optimization": {"stage": 2},
    "tensorboard": {"enabled": True, "output_path": "a"},
}


@given(st.sets(st.integers(0, 60)))
def test_a_batch_that_is_left_out_is_never_trained_on_and_no_other_is_lost(skipped):
    state = RunState(skipped_batches=sorted(skipped))
    numbers = [state.batch_number(step) for step in range(80)]
    assert numbers == [number for number in range(200) if number not in skipped][:80]


def test_another_identity_is_refused_with_all_that_differs(tmp_path):
    state = RunState(identity={"seed": 1, "corpus": "a", "model.hidden_size": 64, "gone": 1})
    check_identity(state, dict(state.identity), tmp_path, at_once=4)
    with pytest.raises(UserError) as caught:
        check_identity(state, {"seed": 2, "corpus": "a", "model.hidden_size": 128, "new": 5}, tmp_path, at_once=4)
    for part in (
        "seed: 1 then, 2 now",
        "model.hidden_size: 64 then, 128 now",
        "gone: 1 then, None now",
        "new: None then, 5 now",
    ):
        assert part in str(caught.value)
    assert "corpus" not in str(caught.value)


@pytest.mark.parametrize("at_once, accumulation", [(4, 2), (8, 1), (16, None), (3, None)])
def test_fewer_processes_are_told_how_to_keep_the_batch(tmp_path, at_once, accumulation):
    state = RunState(identity={"train_batch_size": 8})
    with pytest.raises(UserError, match="train_batch_size: 8 then, 4 now") as error:
        check_identity(state, {"train_batch_size": 4}, tmp_path, at_once=at_once)
    hint = f"--set gradient_accumulation_steps={accumulation}, which keeps its global batch"
    assert (hint if accumulation else "same data and flags, or give another --output") in str(error.value)


def changed(path, value):
    """CONFIG with one value changed, or taken out."""
    *blocks, key = path.split(".")
    config = {name: {**block} if isinstance(block, dict) else block for name, block in CONFIG.items()}
    inner = config
    for block in blocks:
        inner[block] = {**inner[block]}
        inner = inner[block]
    inner[key] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gradient_accumulation_steps", 4),
        ("zero_optimization.stage", 1),
        ("zero_optimization.overlap_comm", True),
        ("tensorboard.output_path", "b"),
        ("steps_per_print", 5),
        ("optimizer.params.torch_adam", False),
    ],
)
def test_what_does_not_change_the_training_is_accepted_in_silence(path, value):
    assert check_config(RunState(ds_config=CONFIG), changed(path, value), "here", accept=False) == []


def test_another_micro_batch_is_told():
    smaller = changed("train_micro_batch_size_per_gpu", 2)
    assert check_config(RunState(ds_config=CONFIG), smaller, "here", accept=False) == [
        "train_micro_batch_size_per_gpu: 4 then, 2 now"
    ]


def test_a_longer_run_is_told():
    longer = changed("scheduler.params.total_num_steps", 20)
    assert check_config(RunState(ds_config=CONFIG), longer, "here", accept=False) == [
        "scheduler.params.total_num_steps: 10 then, 20 now"
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("optimizer.params.lr", 5e-4, "optimizer.params.lr: 0.001 then, 0.0005 now"),
        ("gradient_clipping", 0, "gradient_clipping: 1.0 then, 0 now"),
        ("scheduler.params.warmup_type", "log", "scheduler.params.warmup_type: linear then, log now"),
        ("fp16", {"enabled": True}, "fp16.enabled: None then, True now"),
    ],
)
def test_what_changes_it_is_refused_unless_it_is_accepted(path, value, words):
    state = RunState(ds_config=CONFIG)
    with pytest.raises(UserError, match="another configuration") as caught:
        check_config(state, changed(path, value), "here", accept=False)
    assert words in str(caught.value)
    assert "--accept_changes" in str(caught.value)
    assert check_config(state, changed(path, value), "here", accept=True) == [words]


def test_another_optimizer_has_other_states():
    with pytest.raises(UserError, match=r"optimizer\.type: AdamW then, Muon now") as caught:
        check_config(RunState(ds_config=CONFIG), changed("optimizer.type", "Muon"), "here", accept=True)
    assert "--accept_changes" not in str(caught.value)

"""The table of keys against the installed DeepSpeed, and the words that go with a wrong value."""

import inspect
from dataclasses import asdict, replace

import pytest

from training.config import deepspeed_keys, schema, value_kinds


def test_kinds_come_from_deepspeeds_models():
    zero = schema.keys().top_level["zero_optimization"]
    assert value_kinds.in_words(zero["stage"]) == "one of 0, 1, 2, 3"
    assert zero["overlap_comm"] == value_kinds.BOOL
    assert zero["reduce_bucket_size"] == value_kinds.POSITIVE_SIZE
    assert zero["stage3_max_live_parameters"] == zero["max_live_parameters"] == value_kinds.SIZE
    assert zero["offload_optimizer"]["ratio"] == value_kinds.RATIO
    assert zero["offload_param"]["nvme_path"] == value_kinds.TEXT
    assert "cpu_offload" not in zero and "cpu_offload" in schema.keys().former
    assert schema.keys().top_level["fp16"]["loss_scale_window"] == value_kinds.COUNT


def test_the_kept_keys_are_read_again_and_those_of_another_version_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = schema.keys.__wrapped__()
    monkeypatch.setattr(deepspeed_keys, "read", lambda: pytest.fail("they are kept"))
    assert schema.keys.__wrapped__() == found
    monkeypatch.setattr(schema, "version", lambda package: "0.20.0")
    monkeypatch.setattr(deepspeed_keys, "read", lambda: asdict(replace(found, any_case=["new"])))
    assert schema.keys.__wrapped__().any_case == ["new"]
    (kept,) = (path for path in tmp_path.glob("bufudu/*.json") if "new" in path.read_text())
    kept.write_text('{"half')
    assert schema.keys.__wrapped__().any_case == ["new"]


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (value_kinds.BOOL, [True, False], [1, 0, "true"]),
        (value_kinds.COUNT, [1, 2**53], [0, True, 1.0, 2**53 + 1]),
        (value_kinds.POSITIVE_SIZE, [1, 5e8], [0, 1.5, True, 1e300, 10**400]),
        (value_kinds.NOT_NEGATIVE, [0, 0.5], [-1, float("inf"), float("nan"), False]),
        (value_kinds.NUMBERS, [1e-3, [1e-3, 2]], [[], [True], ["1"]]),
        (value_kinds.BETAS, [[0.9, 0.999], [0, 0]], [[0.9], [0.9, 1], 0.9]),
        ([0, 1], [0, 1], [True, 1.0, 2, "1"]),
    ],
)
def test_kinds(kind, fitting, others):
    assert all(value_kinds.fits(kind, value) for value in fitting)
    assert not any(value_kinds.fits(kind, value) for value in others)


class Watched(dict):
    """A configuration that remembers which keys DeepSpeed asked it for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self

    def __copy__(self):
        return self


def test_the_table_has_every_top_level_key_that_deepspeed_reads():
    from deepspeed.runtime.config import DeepSpeedConfig

    config = Watched(train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1)
    DeepSpeedConfig(config)
    assert "zero_optimization" in config.asked
    assert config.asked <= schema.keys().top_level.keys() | schema.keys().former.keys()


def test_the_table_has_every_schedule_and_its_parameters():
    from deepspeed.runtime import lr_schedules

    assert set(lr_schedules.VALID_LR_SCHEDULES) == set(schema.keys().schedules)
    for name, table in schema.keys().schedules.items():
        assert arguments(getattr(lr_schedules, name)) - {"optimizer"} == set(table)
        assert value_kinds.ANY not in table.values()


def test_the_table_has_every_parameter_of_the_optimizers():
    import torch
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.runtime.engine import DeepSpeedEngine

    choice = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
    assert arguments(torch.optim.AdamW) - {"params"} | choice == set(
        schema.keys().params_of({"type": "adamw", "params": {"torch_adam": True}})
    )
    assert arguments(FusedAdam) - {"params"} | choice == set(schema.keys().params_of({"type": "AdamW"}))
    halves = {*DeepSpeedEngine._MUON_HALF_KEYS, *DeepSpeedEngine._ADAM_HALF_KEYS}
    assert halves <= set(schema.keys().params_of({"type": "muon"}))
    assert schema.keys().params_of({"type": "Adafactor"})["eps"] == value_kinds.ANY
    assert schema.keys().params_of({"type": "MuAdam"}) is None


def test_every_optimizer_has_a_name_to_show():
    names = schema.keys().optimizer_names()
    assert {"Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "SGD", "Adafactor"} <= set(names)
    assert len({name.lower() for name in names}) == len(names)
    assert set(schema.ZERO_TESTED) <= set(schema.keys().any_case)


def arguments(cls):
    return set(inspect.signature(cls.__init__).parameters) - {"self"}

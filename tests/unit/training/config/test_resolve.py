"""The DeepSpeed files: what they become on the machine they are for, and every way in which one can be wrong."""

import copy
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.hardware import Device
from model import ModelConfig
from training.config import schema
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts

CONFIGS = Path(__file__).parents[4] / "ds_configs"
FILES = sorted(file.stem for file in CONFIGS.glob("*.json") if not file.stem.startswith("tuned-"))

T4X2 = Device("cuda", 2, "Tesla T4", 15 * 2**30, (7, 5), False, True, True, {"fp32": 8.1e12, "fp16": 65e12})
A100X2 = Device("cuda", 2, "NVIDIA A100-SXM4-40GB", 40 * 2**30, (8, 0), True, True, True, None)
P100 = Device("cuda", 1, "Tesla P100-PCIE-16GB", 16 * 2**30, (6, 0), False, False, True, None)
CPU = Device("cpu", 2, "Some Processor", 8 * 2**30, None, True, False, True, None)
OLD_CPU = replace(CPU, bf16_fast=False)

ROWS = 1_413_103
RUN = RunFacts(
    world_size=2,
    epochs=5.0,
    max_steps=None,
    output=Path("runs/first"),
    model=ModelConfig(),
)
MACHINES = {
    "t4x2": (T4X2, RUN),
    "t4x2_ep2": (T4X2, replace(RUN, model=ModelConfig(ep_size=2))),
    "t4x2_fast": (T4X2, RUN),
    "t4x1": (replace(T4X2, count=1), replace(RUN, world_size=1)),
    "ampere_x2": (A100X2, RUN),
    "cpu_x2": (CPU, RUN),
    "t4x2_sft": (T4X2, RUN),
    "t4x1_sft": (replace(T4X2, count=1), replace(RUN, world_size=1)),
    "cpu_x2_sft": (CPU, RUN),
}


def resolved(*overrides, name="t4x2", device=None, run=None, rows=ROWS):
    usual_device, usual_run = MACHINES[name]
    config = load(CONFIGS / f"{name}.json", overrides)
    return check(config, run or usual_run, device or usual_device, source=f"{name}.json").resolve(rows)


def complaint(*overrides, **where):
    with pytest.raises(UserError) as caught:
        resolved(*overrides, **where)
    return str(caught.value)


def autos(value):
    if isinstance(value, dict):
        return [auto for inner in value.values() for auto in autos(inner)]
    if isinstance(value, list):
        return [auto for inner in value for auto in autos(inner)]
    return [value] if value == "auto" else []


# --- the files --------------------------------------------------------------------------------------------------------


def test_every_file_has_its_machine():
    assert sorted(MACHINES) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_file_resolves_on_its_machine(name):
    result = resolved(name=name)
    assert autos(result.config) == []
    assert "bufudu" not in result.config
    assert result.train_batch == result.micro_batch * result.accumulation * MACHINES[name][1].world_size
    assert result.total_steps == result.config["scheduler"]["params"]["total_num_steps"]
    assert json.loads(json.dumps(result.config)) == result.config
    device, run = MACHINES[name]
    assert check(result.config, run, device, source="again").resolve(ROWS).config == result.config


@pytest.mark.parametrize("name", FILES)
def test_the_keys_stand_in_the_same_order(name):
    order = [*json.loads((CONFIGS / "t4x2.json").read_text()), "bufudu"]
    order.insert(order.index("fp16") + 1, "bf16")
    keys = list(json.loads((CONFIGS / f"{name}.json").read_text()))
    assert keys == [key for key in order if key in keys]


@pytest.mark.parametrize("name", FILES)
def test_the_readme_names_the_file(name):
    assert f"`{name}.json`" in (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_t4x2_is_the_recipe_of_the_reference_run():
    result = resolved()
    assert (result.micro_batch, result.accumulation, result.train_batch) == (32, 4, 256)
    assert (result.warmup_steps, result.total_steps) == (500, 27_600)
    assert (result.peak_lr, result.config["gradient_clipping"]) == (2e-4, 1.0)
    assert (result.precision, result.zero_stage, result.optimizer_name) == ("fp16", 2, "AdamW")
    assert result.config["optimizer"]["params"] == {
        "lr": 2e-4,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "torch_adam": True,
        "fused": True,
    }
    assert result.config["scheduler"]["params"]["cos_min_ratio"] == 0.1
    assert result.config["fp16"]["loss_scale"] == 0


def test_notes_say_where_the_figures_come_from():
    assert resolved().notes == [
        "scheduler.params.total_num_steps: auto -> 27,600 (5 epochs x 1,413,103 rows / 256 a step)",
        "scheduler.params.warmup_num_steps: auto -> 500 (500, or a tenth of 27,600 steps where that is less)",
        f"tensorboard.output_path: auto -> {Path('runs/first/tensorboard')} (the run's folder)",
        'tensorboard.job_name: auto -> "" (the folder itself)',
    ]


def test_t4x1_keeps_the_global_batch():
    result = resolved(name="t4x1")
    assert (result.micro_batch, result.accumulation, result.train_batch, result.total_steps) == (32, 8, 256, 27_600)


def test_ampere_computes_in_bf16():
    assert resolved(name="ampere_x2").precision == "bf16"


@pytest.mark.parametrize(
    ("device", "processes", "precision", "accumulation"),
    [(T4X2, 2, "fp16", 2), (replace(T4X2, count=1), 1, "fp16", 4), (A100X2, 2, "bf16", 2)],
)
def test_the_fast_file_fits_one_gpu_and_two_old_and_new(device, processes, precision, accumulation):
    result = resolved(name="t4x2_fast", device=device, run=replace(RUN, world_size=processes))
    assert (result.precision, result.accumulation, result.train_batch) == (precision, accumulation, 128)


@pytest.mark.parametrize(
    ("device", "method"), [(CPU, "polar"), (OLD_CPU, "polar"), (T4X2, "gram"), (A100X2, "standard")]
)
def test_muons_iteration_is_chosen_for_the_device(device, method):
    result = resolved("optimizer.params.ns_method=auto", "fp16.enabled=false", name="t4x2_fast", device=device)
    assert result.config["optimizer"]["params"]["ns_method"] == method
    assert any(f"ns_method: auto -> {method}" in note for note in result.notes)


def test_muon_is_not_clipped():
    result = resolved(name="t4x2_fast")
    assert (result.config["gradient_clipping"], result.peak_lr, result.optimizer_name) == (0, 0.02, "Muon")


@pytest.mark.parametrize(("device", "precision"), [(CPU, "bf16"), (OLD_CPU, "fp32"), (T4X2, "fp32"), (A100X2, "bf16")])
def test_bf16_auto_follows_the_device(device, precision):
    result = resolved(name="cpu_x2", device=device)
    assert result.precision == precision
    assert any(note.startswith(f"bf16.enabled: auto -> {str(precision == 'bf16').lower()}") for note in result.notes)


def test_neither_step_changes_its_input():
    config = load(CONFIGS / "cpu_x2.json")
    before = copy.deepcopy(config)
    draft = check(config, RUN, CPU, source="cpu_x2.json")
    checked = copy.deepcopy(draft.config)
    draft.resolve(ROWS)
    assert (config, draft.config) == (before, checked)


# --- what "auto" becomes ----------------------------------------------------------------------------------------------


def test_max_steps_ends_the_schedule():
    result = resolved(run=replace(RUN, max_steps=200))
    assert (result.total_steps, result.warmup_steps) == (200, 20)
    assert "--max_steps 200" in result.notes[0]


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"), [(1, 256, 1), (1, 257, 2), (0.1, 2560, 1), (0.5, 512, 1), (3, 256, 3), (1, 1, 1)]
)
def test_steps_round_up_as_decimals_do(epochs, rows, steps):
    assert resolved(run=replace(RUN, epochs=epochs), rows=rows).total_steps == steps


def test_accumulation_from_the_batch():
    result = resolved("gradient_accumulation_steps=auto")
    assert result.accumulation == 4
    assert "gradient_accumulation_steps: auto -> 4 (256 / 32 a process x 2 processes)" in result.notes
    assert resolved("gradient_accumulation_steps=null").accumulation == 4


def test_batch_from_its_parts():
    result = resolved("train_batch_size=auto")
    assert "train_batch_size: auto -> 256 (32 a process x 4 accumulated x 2 processes)" in result.notes
    assert resolved("train_batch_size=null", "gradient_accumulation_steps=null").train_batch == 64


def test_tensorboard_lands_in_the_run_or_where_the_user_says():
    assert resolved().config["tensorboard"]["output_path"] == str(Path("runs/first/tensorboard"))
    elsewhere = resolved("tensorboard.output_path=/logs").config["tensorboard"]
    assert elsewhere == {"enabled": True, "output_path": "/logs", "job_name": "first"}


def test_no_schedule_is_a_constant_learning_rate():
    result = resolved("scheduler=null")
    assert "scheduler" not in result.config
    assert (result.warmup_steps, result.peak_lr) == (0, 2e-4)
    assert any("constant" in note for note in result.notes)


@pytest.mark.parametrize(
    ("scheduler", "warmup", "peak"),
    [
        ({"type": "WarmupLR", "params": {"warmup_num_steps": "auto", "warmup_type": "linear"}}, 500, 2e-4),
        ({"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": 100}}, 100, 1e-3),
        ({"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_max_lr": 3e-4}}, 0, 3e-4),
        ({"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 1e-5}}, 0, 2e-4),
    ],
)
def test_other_schedules_pass(scheduler, warmup, peak):
    result = resolved(f"scheduler={json.dumps(scheduler)}")
    assert (result.warmup_steps, result.peak_lr) == (warmup, peak)
    assert result.config["scheduler"]["params"].get("total_num_steps", 27_600) == 27_600


def test_no_schedule_gives_both_halves_of_muon_one_rate():
    constant = 'scheduler={"type":"WarmupLR","params":{"warmup_num_steps":10,"warmup_max_lr":"auto"}}'
    assert "warmup_max_lr" not in resolved(constant, name="t4x2_fast").config["scheduler"]["params"]
    linear = 'scheduler={"type":"WarmupDecayLR","params":{"total_num_steps":"auto","warmup_max_lr":"auto"}}'
    message = complaint(linear, name="t4x2_fast")
    assert "scheduler.params.warmup_max_lr: one rate" in message and "Take WarmupCosineLR" in message
    assert resolved(linear).peak_lr == 2e-4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scheduler.params.warmup_type=null"], 'default is "log"'),
        (["scheduler.params.warmup_num_steps=null"], "default is 1,000"),
        (["scheduler.params.total_num_steps=30000"], "30,000, but this run takes 27,600"),
        (["optimizer.type=Adam"], "DeepSpeed's Adam is AdamW"),
        (['scheduler={"type":"WarmupDecayLR","params":{"total_num_steps":"auto"}}'], "rises to 0.001"),
    ],
)
def test_surprises_are_noted(overrides, words):
    assert any(words in note for note in resolved(*overrides).notes)


def test_slow_bf16_on_a_cpu_is_noted_not_refused():
    result = resolved("bf16.enabled=true", name="cpu_x2", device=OLD_CPU)
    assert any("slow" in note for note in result.notes)


# --- contradictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # batches
        (["train_batch_size=300"], ["300 is not 32 a process x 4", "256", "320"]),
        (["train_batch_size=512"], ["gradient_accumulation_steps=8 keeps the batch of 512"]),
        (["train_micro_batch_size_per_gpu=null", "train_batch_size=300"], ["300 is not 37 a process x 4"]),
        (["gradient_accumulation_steps=auto", "train_batch_size=100"], ["multiple of 64", "64 or 128"]),
        (["train_batch_size=0"], ["train_batch_size: 0 is not", "at least 1"]),
        (["train_micro_batch_size_per_gpu=-32"], ["train_micro_batch_size_per_gpu: -32"]),
        (["train_micro_batch_size_per_gpu=32.0"], ["32.0 is not", "a whole number"]),
        (["gradient_accumulation_steps=two"], ['"two" is not']),
        (["gradient_clipping=-1"], ["gradient_clipping: -1", "at least 0"]),
        (["gradient_clipping=1e999"], ["gradient_clipping: Infinity"]),
        # names and kinds
        (["gradient_cliping=1"], ["gradient_cliping", "Did you mean gradient_clipping?"]),
        (["bufudo.seed=1"], ["bufudo", "Did you mean bufudu?"]),
        (["optimizer.params.ns_method=gram"], ["ns_method: DeepSpeed has no such key here", "The keys here are lr, "]),
        (["optimizer.type=Muon", "optimizer.params.ns_method=cubic"], ["one of gram, standard, polar."]),
        (["lr=1e-3"], ["lr: ", "Did you mean optimizer.params.lr?"]),
        (["zero_optimization.stages=2"], ["Did you mean zero_optimization.stage?"]),
        (["fp16.enable=true"], ["Did you mean fp16.enabled?"]),
        (["optimizer.params.beta=[0.9,0.95]"], ["Did you mean optimizer.params.betas?"]),
        (["scheduler.params.warmup_steps=10"], ["Did you mean scheduler.params.warmup_num_steps?"]),
        (["tensorboard.path=x"], ["Did you mean tensorboard.output_path?"]),
        (["activation_checkpointing.profiles=true"], ["Did you mean activation_checkpointing.profile?"]),
        (["bfloat16.enabled=true"], ["bfloat16", '"bf16"']),
        (["elasticity.enabled=true"], ["elasticity", "removed"]),
        (["optimizer.params.max_grad_norm=1"], ["max_grad_norm", "gradient_clipping"]),
        (["fp16=true"], ["fp16: true is not", "a block"]),
        (["fp16.enabled=True"], ['fp16.enabled: "True"', "true or false"]),
        (["optimizer.params.lr=0"], ["optimizer.params.lr: 0 is not", "above 0"]),
        (["optimizer.params.betas=[0.9]"], ["optimizer.params.betas", "two numbers"]),
        (["zero_optimization.stage=4"], ["zero_optimization.stage: 4", "one of 0, 1, 2, 3"]),
        (["optimizer.params.bias_correction=true"], ["optimizer.params.bias_correction"]),
        # "auto" without a rule
        (
            ['optimizer={"type":"Lion","params":{"lr":"auto"}}'],
            ["optimizer.params.lr: no recipe has a value", '"Lion"'],
        ),
        (["fp16=auto"], ['fp16: "auto" is not for a whole block', 'such as {"enabled": "auto"}']),
        (["zero_optimization=auto"], ['zero_optimization: "auto" is not for a whole', 'such as {"stage": "auto"}']),
        (["optimizer.params=auto"], ['optimizer.params: "auto" is not', "a block"]),
        (["scheduler.params=auto"], ['scheduler.params: "auto" is not', "a block"]),
        (['optimizer.params.betas=[0.9,"auto"]'], ["optimizer.params.betas"]),
        (['timers={"throughput":["auto"]}'], ["timers.throughput", "a block"]),
        # precision
        (["bf16.enabled=true"], ["fp16.enabled: bf16.enabled is true as well", "Tesla T4", "7.5", "emulates"]),
        # ZeRO
        (["zero_optimization.stage=3"], ["zero_optimization.stage", "ZeRO-3", "stage=2"]),
        (["zero_optimization.reduce_scatter=false"], ["zero_optimization.reduce_scatter", "true"]),
        (["zero_optimization.contiguous_gradients=false"], ["zero_optimization.contiguous_gradients"]),
        # gradients
        (["prescale_gradients=true"], ["prescale_gradients: ZeRO-2 cannot", "which experts need", "stage=1"]),
        (["gradient_predivide_factor=2"], ["gradient_predivide_factor: ZeRO-2 cannot"]),
        (["data_types.param_dtype=bf16"], ["data_types.param_dtype: the file trains in fp16"]),
        (["data_types.grad_accum_dtype=fp32", "zero_optimization.stage=0"], ["without ZeRO", "precision, fp16"]),
        (["zero_optimization.compute_grad_norm=false"], ["compute_grad_norm: gradient_clipping needs the norm"]),
        (["managed_gradient_accumulation=false"], ["leaves the counting of micro-batches to DeepSpeed"]),
        (["use_data_before_expert_parallelism=true"], ["experts split over neighbouring processes"]),
        (["log_level=loud"], ["one of debug, info"]),
        # optimizer
        (['optimizer={"params":{"lr":0.1}}'], ["optimizer: missing, or without a type"]),
        (["optimizer.type=AdamWW"], ["optimizer.type", "Did you mean AdamW?"]),
        (["optimizer.type=sgd"], ["optimizer.type", "Did you mean SGD?"]),
        (["optimizer.params.lr=null"], ["optimizer.params.lr: missing"]),
        (['optimizer={"type":"Adagrad","params":{"lr":0.1}}'], ["Adagrad's state cannot be spread", "stage=0"]),
        (
            ['optimizer={"type":"NAdam","params":{"lr":0.1}}', "zero_allow_untested_optimizer=true"],
            ["NAdam's state cannot be spread"],
        ),
        (['optimizer={"type":"MuAdamW","params":{"lr":0.1}}'], ["the package mup", "Use AdamW or Muon"]),
        (["fp16.fp16_master_weights_and_grads=true"], ["fp16_master_weights_and_grads: it goes with offloading"]),
        (["zero_optimization.legacy_stage1=true"], ["legacy_stage1: DeepSpeed has removed it"]),
        (["bf16.bf16_optimizer_states=true"], ["both or neither of bf16_master_weights_and_grads and bf16_optim"]),
        (['optimizer={"type":"SGD","params":{"lr":0.1}}'], ["zero_allow_untested_optimizer"]),
        # schedule
        (["scheduler.type=WarmupCosinLR"], ["scheduler.type", "Did you mean WarmupCosineLR?"]),
        (["scheduler.params.total_num_steps=null"], ["total_num_steps: missing", '"auto"']),
        (["scheduler.params.warmup_num_steps=27600"], ["warm-up of 27,600", "27,600 never", '"auto" (500 here)']),
        (["scheduler.params.warmup_num_steps=0"], ["warmup_num_steps: 0"]),
        (["scheduler.params.total_num_steps=400", "scheduler.params.warmup_num_steps=500"], ["500", "400"]),
        (["scheduler.params.warmup_type=cosine"], ["warmup_type", "one of linear, log"]),
    ],
)
def test_contradiction(overrides, words):
    message = complaint(*overrides)
    assert message.startswith("t4x2.json: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "overrides", "device", "words"),
    [
        ("t4x2", [], CPU, ["fp16.enabled", "Some Processor", "cpu_x2.json"]),
        ("t4x1", [], P100, ["fp16.enabled", "P100", "DS_ALLOW_DEPRECATED_FP16"]),
        ("ampere_x2", [], T4X2, ["bf16.enabled", "compute capability 7.5", "below 8.0", "fp16.enabled=true"]),
        ("cpu_x2", ["zero_optimization.offload_optimizer.device=cpu"], CPU, ["offload_optimizer", "Take it out"]),
        (
            "cpu_x2",
            ['optimizer={"type":"AdamW","params":{"lr":1e-3}}', "gradient_clipping=1.0"],
            replace(CPU, has_compiler=False),
            ["torch_adam", "g++"],
        ),
        ("t4x2_fast", ["gradient_clipping=1.0"], T4X2, ["gradient_clipping", "orthogonalised", "0"]),
        ("t4x2_fast", ["optimizer.params.fused=true"], T4X2, ["optimizer.params.fused"]),
        ("t4x2_fast", ["optimizer.params.ns_method=standard"], T4X2, ["ns_method", "bf16", "gram"]),
        ("t4x2_fast", ["optimizer.params.ns_method=polar"], T4X2, ["ns_method", "polar", "bf16", "gram"]),
        (
            "cpu_x2",
            ['optimizer={"type":"Lion","params":{"lr":1e-3}}'],
            CPU,
            ["DeepSpeed has no Lion for a CPU", "AdamW or Muon"],
        ),
        ("cpu_x2", ['optimizer={"type":"Lamb","params":{"lr":1e-3}}'], CPU, ["DeepSpeed has no Lamb for a CPU"]),
        ("cpu_x2", ["optimizer.params.lr=1e-3"], CPU, ["optimizer.params.lr: without effect", "muon_lr=null"]),
        ("t4x2_fast", ["optimizer.params.adam_lr=null"], T4X2, ["optimizer.params.lr: missing"]),
    ],
)
def test_contradiction_with_the_machine(name, overrides, device, words):
    message = complaint(*overrides, name=name, device=device)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"world_size": 1}, ["train_batch_size", "gradient_accumulation_steps=8 keeps the batch of 256"]),
        ({"model": ModelConfig(ep_size=4)}, ["2 processes cannot form groups of 4", "It can be 1 or 2"]),
        ({"model": ModelConfig(ep_size=2, use_moe=False)}, ["--use_moe false has no experts"]),
    ],
)
def test_contradiction_with_the_run(facts, words):
    message = complaint(run=replace(RUN, **facts))
    for word in words:
        assert word in message


def test_muon_may_be_clipped_widely():
    assert resolved("gradient_clipping=50", name="t4x2_fast").config["gradient_clipping"] == 50


def test_zero3_is_refused_for_dense_models_too():
    message = complaint("zero_optimization.stage=3", run=replace(RUN, model=ModelConfig(use_moe=False)))
    assert "takes apart" in message
    assert "--set zero_optimization.stage=2" in message


def test_all_problems_come_at_once_and_numbered():
    message = complaint(
        "train_batch_size=300",
        "optimzer={}",
        "zero_optimization.stage=3",
        "scheduler.params.warmup_num_steps=99999",
        "optimizer.params.lr=-1",
        device=CPU,
        run=replace(RUN, model=ModelConfig(ep_size=4), max_steps=27_600),
    )
    assert message.startswith("t4x2.json: 7 problems, nothing was started.")
    for key in (
        "optimizer.params.lr",
        "train_batch_size",
        "optimzer",
        "fp16.enabled",
        "zero_optimization.stage",
        "scheduler.params.warmup_num_steps",
        "--ep_size",
    ):
        assert f". {key}: " in message
    assert "  7. " in message


# --- any content ------------------------------------------------------------------------------------------------------

keys = st.one_of(
    st.sampled_from([path.rpartition(".")[2] for path in schema.keys().paths()] + ["type", "lr", "total_num_steps"]),
    st.text(string.ascii_lowercase + "_", min_size=1, max_size=8),
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.just("auto"),
        st.just(10**400),
        st.sampled_from(["AdamW", "Muon", "WarmupCosineLR", "OneCycle", 1, 2, 32]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def only_user_errors(action):
    try:
        return action()
    except UserError as error:
        assert str(error)
        return None


@settings(max_examples=75, deadline=None)
@given(st.dictionaries(keys, values, max_size=6))
def test_no_content_is_more_than_a_user_error(changes):
    config = {**json.loads((CONFIGS / "t4x2.json").read_text()), **changes}
    for device in (T4X2, CPU):
        result = only_user_errors(lambda device=device: check(config, RUN, device, source="random.json").resolve(ROWS))
        if result is not None:
            assert result.total_steps >= 1
            assert result.peak_lr > 0


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=30), st.tuples(st.sampled_from(list(schema.keys().paths())), values)))
def test_no_override_is_more_than_a_user_error(override):
    if isinstance(override, tuple):
        override = f"{override[0]}={only_json(override[1])}"
    config = only_user_errors(lambda: load(CONFIGS / "t4x2.json", [override]))
    if config is not None:
        only_user_errors(lambda: check(config, RUN, T4X2, source="t4x2.json").resolve(ROWS))


def only_json(value):
    try:
        return json.dumps(value)
    except ValueError:
        return "1"


def test_deepspeed_accepts_what_we_resolved():
    from deepspeed.runtime.config import DeepSpeedConfig

    config = resolved(name="t4x1").config
    understood = DeepSpeedConfig(copy.deepcopy(config))
    assert (understood.train_batch_size, understood.gradient_accumulation_steps) == (256, 8)
    assert understood.float16_config.enabled
    assert understood.monitor_config.tensorboard.job_name == ""


# --- what fuzzing has found (python -m stress.fuzz --target config) -----------------------------------------------


def test_a_total_that_is_a_text_beside_no_type_of_schedule():
    config = load(CONFIGS / "t4x2.json", ['scheduler={"params": {"total_num_steps": ".", "warmup_num_steps": "auto"}}'])
    with pytest.raises(UserError, match=r"1\. scheduler\.type"):
        check(config, RUN, T4X2, source="t4x2.json")


def test_a_message_stays_readable_whatever_the_file_holds():
    config = json.loads((CONFIGS / "t4x2.json").read_text()) | {f"zq{i}\x1b\ud800": "长" * 3000 for i in range(300)}
    with pytest.raises(UserError) as caught:
        check(config, RUN, T4X2, source="t4x2.json")
    text = str(caught.value)
    assert len(text) < 6000 and text.replace("\n", "").isprintable()
    assert "300 problems" in text and "and 280 more." in text and text.count("The keys here are") == 1

"""Command lines and JSON files as people bring them from other trainers: each works, with a line, or is answered."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from common.hardware import Device
from model import ModelConfig
from training.config import command_line, foreign_flags
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts

T4X2 = Device("cuda", 2, "Tesla T4", 15 * 2**30, (7, 5), False, True, True, None)
A100X2 = Device("cuda", 2, "NVIDIA A100-SXM4-40GB", 40 * 2**30, (8, 0), True, True, True, None)
CPU = Device("cpu", 2, "Some Processor", 8 * 2**30, None, False, False, True, None)
RUN = RunFacts(world_size=2, epochs=5.0, max_steps=None, output=Path("runs/x"), model=ModelConfig())
T4X2_JSON = Path(__file__).parents[4] / "ds_configs" / "t4x2.json"


def understood(line: str):
    """What train.py makes of a command line: the flags, the --set entries and the lines that it says."""
    said: list[str] = []
    given = command_line.parse(shlex.split(line), "", said.append)
    return given, given.pop("set", []), said


# --- command lines ----------------------------------------------------------------------------------------------------

LINEAR = {
    "type": "WarmupDecayLR",
    "params": {
        "warmup_max_lr": "auto",
        "total_num_steps": "auto",
        "warmup_num_steps": "auto",
        "warmup_type": "linear",
    },
}
TAKEN = [
    # DeepSpeed's documents
    ("--deepspeed --deepspeed_config ds_configs/x.json", {"deepspeed_config": Path("ds_configs/x.json")}, []),
    ("--deepspeed ds_config.json --local_rank 0", {"deepspeed_config": Path("ds_config.json")}, []),
    (
        "--deepspeed=ds_config.json --zero_stage 1",
        {"deepspeed_config": Path("ds_config.json")},
        ["zero_optimization.stage=1"],
    ),
    ("--deepspeed_mpi --deepspeed --deepspeed_config=x.json", {"deepspeed_config": Path("x.json")}, []),
    # Hugging Face's
    ("--learning_rate 3e-4", {}, ["optimizer.params.lr=3e-4"]),
    (
        "--per_device_train_batch_size 8",
        {},
        ["train_micro_batch_size_per_gpu=8", "train_batch_size=auto"],
    ),
    (
        "--per_device_train_batch_size=8 --gradient_accumulation_steps 2",
        {},
        [
            "train_micro_batch_size_per_gpu=8",
            "train_batch_size=auto",
            "gradient_accumulation_steps=2",
            "train_batch_size=auto",
        ],
    ),
    ("--num_train_epochs 3.0 --output_dir runs/x", {"epochs": 3.0, "output": Path("runs/x")}, []),
    ("--resume_from_checkpoint True", {"resume": "auto"}, []),
    ("--resume_from_checkpoint runs/x/checkpoints/step-10", {"resume": "runs/x/checkpoints/step-10"}, []),
    ("--model_name_or_path runs/base", {"init_from": Path("runs/base")}, []),
    ("--report_to tensorboard", {}, ["tensorboard.enabled=true"]),
    ("--report_to none", {}, ["tensorboard.enabled=false"]),
    (
        "--report_to wandb tensorboard --use_wandb False",
        {},
        ["tensorboard.enabled=true", "wandb.enabled=true", "wandb.enabled=false"],
    ),
    ("--report_to wandb,tensorboard", {}, ["tensorboard.enabled=true", "wandb.enabled=true"]),
    ("--lr_scheduler_type constant", {}, ["scheduler=null"]),
    (
        "--warmup_steps 100 --lr_scheduler_type linear --set scheduler.params.warmup_type=log",
        {},
        [
            f"scheduler={json.dumps(LINEAR)}",
            "scheduler.params.warmup_num_steps=100",
            "scheduler.params.warmup_type=log",
        ],
    ),
    ("--fp16 --max_grad_norm 0.5", {}, ["fp16.enabled=true", "bf16.enabled=false", "gradient_clipping=0.5"]),
    ("--bf16 True --do_train", {}, ["fp16.enabled=false", "bf16.enabled=true"]),
    ("--fp16 false", {}, ["fp16.enabled=false"]),
    (
        "--train_file a.jsonl --logging_steps 10 --save_steps 500 --save_total_limit 2 --eval_steps 50",
        {"data": [Path("a.jsonl")], "log_interval": 10, "save_interval": 500, "keep_last": 2, "eval_interval": 50},
        [],
    ),
    (
        "--max-steps 100 --weight-decay 0.1 --adam_epsilon=1e-6",
        {"max_steps": 100},
        ["optimizer.params.weight_decay=0.1", "optimizer.params.eps=1e-6"],
    ),
    (
        "--wd=0.1 --precision bf16-mixed --max_epochs 3 --moe-expert-parallel-size 2 --wandb_project mine --use_wandb",
        {"epochs": 3.0, "ep_size": 2},
        [
            "optimizer.params.weight_decay=0.1",
            "fp16.enabled=false",
            "bf16.enabled=true",
            "wandb.project=mine",
            "wandb.enabled=true",
        ],
    ),
    ("--mixed_precision no", {}, ["fp16.enabled=false", "bf16.enabled=false"]),
    # the reference run's own, whose warm-up counts micro-batches
    (
        "--batch_size 32 --accumulation_steps 4 --warmup_iters 2000 --use_moe True --grad_clip 1.0 --mode pretrain",
        {"use_moe": True},
        [
            "train_micro_batch_size_per_gpu=32",
            "train_batch_size=auto",
            "gradient_accumulation_steps=4",
            "train_batch_size=auto",
            "scheduler.params.warmup_num_steps=500",
            "gradient_clipping=1.0",
        ],
    ),
    (
        "--data_path pretrain.jsonl --dim 512 --n_layers 8 --max_seq_len 512 --epochs 2 --save_dir o --dtype bfloat16",
        {
            "data": [Path("pretrain.jsonl")],
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "max_seq_len": 512,
            "epochs": 2.0,
            "output": Path("o"),
        },
        ["fp16.enabled=false", "bf16.enabled=true"],
    ),
    # nanoGPT's
    (
        "--block_size=256 --n_layer=6 --n_head=6 --n_embd=384 --max_iters=5000 --warmup_iters=100",
        {"max_seq_len": 256, "num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384, "max_steps": 5000},
        ["scheduler.params.warmup_num_steps=100"],
    ),
    # Megatron's
    (
        "--micro-batch-size 4 --global-batch-size 64 --lr 1e-4 --train-iters 10",
        {"max_steps": 10},
        [
            "train_micro_batch_size_per_gpu=4",
            "train_batch_size=64",
            "gradient_accumulation_steps=auto",
            "optimizer.params.lr=1e-4",
        ],
    ),
]
ANSWERED = [
    ("--warmup_ratio 0.03", ["there is no --warmup_ratio", "warmup_num_steps"]),
    ("--report_to all", ["--report_to all: it can be none", "tensorboard, wandb, comet_ml"]),
    ("--report_to swanlab", ["--report_to swanlab: it can be", "docs/experiments.md has SwanLab and trackio"]),
    ("--lr_scheduler_type polynomial", ["--lr_scheduler_type polynomial: ", "constant_with_warmup, linear, cosine"]),
    ("--optimizer adamw --dtype fp8", ["there is no --optimizer: write it as", "--dtype fp8: it can be fp16"]),
    ("--eval_strategy steps --run_name x", ["--eval_interval", "a run is called after its folder"]),
    ("--offload cpu --total_batch_size 524288", ["nothing is offloaded", "--global_batch_size counts rows"]),
    ("--include localhost:0,1 --master_port 29501", ["no --include: it belongs to the launcher", "no --master_port"]),
    ("--optim adamw_torch --overwrite_output_dir", ["--set optimizer=", "--resume never"]),
    ("--per_device_eval_batch_size 8", ["evaluations take the micro-batch of the JSON"]),
    ("--mode sft --compile=False", ["there is no --mode: what the data holds decides", "nothing is compiled"]),
    ("--learnin_rate 1e-4", ["there is no --learnin_rate"]),
    ("--deepspeed_confg x.json", ["there is no --deepspeed_confg, did you mean --deepspeed_config?"]),
    ("--num_gpus 2", ["it belongs to the launcher: deepspeed --num_gpus 2 train.py"]),
    ("--batch_size", ["--batch_size needs a value"]),
]


@pytest.mark.parametrize(("line", "flags", "sets"), TAKEN)
def test_a_command_line_from_elsewhere_is_taken_in_our_words(line, flags, sets):
    given, found, said = understood(line)
    assert (given, found) == (flags, sets)
    for key in found:
        assert any(key.split("=")[0] in each for each in said) or key.endswith("warmup_type=log")


@pytest.mark.parametrize(("line", "words"), ANSWERED)
def test_what_has_no_equal_here_is_answered(line, words):
    with pytest.raises(UserError) as error:
        understood(line)
    assert [word for word in words if word not in str(error.value)] == []


def test_our_own_flags_are_left_as_they_are():
    line = ["--set", "optimizer.params.lr=1e-3", "a.b=2", "--data", "a.jsonl", "b.jsonl", "--epochs", "2", "--plan"]
    assert foreign_flags.translate(line) == (line, [])


def test_the_reference_runs_line_gives_the_reference_run():
    _, sets, said = understood(next(line for line, *_ in TAKEN if "warmup_iters 2000" in line))
    result = check(load(T4X2_JSON, sets), RUN, T4X2, source="t4x2.json").resolve(1_413_103)
    assert (result.train_batch, result.warmup_steps, result.config["gradient_clipping"]) == (256, 500, 1.0)
    assert "--warmup_iters 2000: taken as scheduler.params.warmup_num_steps=500" in said


# --- JSON files -------------------------------------------------------------------------------------------------------

HUGGING_FACE = """{
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
             "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW",
                  "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR",
                  "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 2, "allgather_partitions": true, "allgather_bucket_size": 2e8, "overlap_comm": true,
                          "reduce_scatter": true, "reduce_bucket_size": "auto", "contiguous_gradients": true},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"""
LLAMA_FACTORY = """{
  "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto", "zero_allow_untested_optimizer": true,
  "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
           "min_loss_scale": 1},
  "bf16": {"enabled": "auto"},
  "zero_optimization": {"stage": 0, "allgather_partitions": true, "allgather_bucket_size": 5e8, "overlap_comm": false,
                        "reduce_scatter": true, "reduce_bucket_size": 5e8, "contiguous_gradients": true,
                        "round_robin_gradients": true}
}"""
WITH_COMMENTS = """{
    // a tutorial's file, as DeepSpeed's own reader takes it
    "train_batch_size": 16,
    "steps_per_print": 2000, /* quiet */
    "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7,},},
    "scheduler": {"type": "WarmupLR",
                  "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000}},
    "gradient_clipping": 1.0,
    "fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 15,},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 50000000,},
}"""
ACCELERATE = """{
    "fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": true}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                  "warmup_num_steps": "auto", "total_num_steps": "auto"}},
    "zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "auto", "pin_memory": true},
                          "stage3_gather_16bit_weights_on_model_save": "auto", "overlap_comm": "auto"},
    "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1
}"""
ZERO3 = """{
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true},
        "offload_param": {"device": "cpu", "pin_memory": true}, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9},
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"
}"""
GETTING_STARTED = """{
    "train_batch_size": 8, "gradient_accumulation_steps": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 0.00015}},
    "fp16": {"enabled": true},
    "zero_optimization": true
}"""
OLD_FEATURES = """{
    "train_micro_batch_size_per_gpu": 4,
    "sparse_attention": {"mode": "fixed", "block": 16}, "moe": {"enabled": true},
    "curriculum_learning": {"enabled": true, "curriculum_type": "seqlen"},
    "progressive_layer_drop": {"enabled": true, "theta": 0.5},
    "elasticity": {"enabled": true, "max_train_batch_size": 2000},
    "amp": {"enabled": true, "opt_level": "O1"},
    "zero_optimization": {"stage": 2, "cpu_offload": true}
}"""
NEW_FEATURES = """{
    "train_micro_batch_size_per_gpu": 4,
    "activation_checkpointing": {"partition_activations": true, "number_checkpoints": 4},
    "data_efficiency": {"enabled": true, "seed": 1},
    "autotuning": {"enabled": true, "fast": false},
    "tensor_parallel": {"autotp_size": 2},
    "compile": {"deepcompile": true},
    "torch_autocast": {"enabled": true, "dtype": "bfloat16"},
    "hybrid_engine": {"enabled": true}
}"""
SWITCHED_OFF = """{
    "train_micro_batch_size_per_gpu": 4, "sequence_parallel_size": 1, "tensor_parallel": {"autotp_size": 1},
    "activation_checkpointing": {"partition_activations": false, "cpu_checkpointing": false, "profile": false},
    "autotuning": {"enabled": false, "fast": true}, "data_efficiency": {"enabled": false, "seed": 1},
    "flops_profiler": {"enabled": false, "profile_step": 1, "module_depth": -1, "top_modules": 1, "detailed": true},
    "comms_logger": {"enabled": false}, "wandb": {"enabled": false, "project": "x"},
    "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}, "cpu_offload": false,
        "stage3_max_live_parameters": 1e9},
    "curriculum_learning": {"enabled": false, "curriculum_type": "seqlen"}, "amp": {"enabled": false},
    "aio": {"block_size": 1048576, "queue_depth": 8}, "checkpoint": {"use_node_local_storage": false}
}"""
ONE_BIT = """{
    "train_batch_size": 4096, "train_micro_batch_size_per_gpu": 16, "gradient_clipping": 1.0, "fp16": {"enabled": true},
    "optimizer": {"type": "OneBitAdam", "params": {"lr": 4e-4, "freeze_step": 23000}}
}"""
SMALLEST = '{"zero_optimization": {"stage": 2}}'
ALL_AUTO = '{"zero_optimization": {"stage": 2}, "optimizer": "auto", "scheduler": "auto"}'
MUON = """{
    "train_batch_size": 64, "optimizer": {"type": "Muon", "params": {"muon_lr": "auto", "adam_lr": "auto"}},
    "gradient_clipping": "auto", "bf16": {"enabled": true}, "scheduler": null, "zero_optimization": {"stage": 2}
}"""


def resolved(text: str, tmp_path: Path, device: Device):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    return check(load(tmp_path / "mine.json"), RUN, device, source="mine.json").resolve(1_413_103)


@pytest.mark.parametrize(
    ("text", "device", "batch", "precision", "expected"),
    [
        (
            HUGGING_FACE,
            T4X2,
            (32, 4, 256),
            "fp16",
            {
                "gradient_clipping": 1.0,
                "scheduler.params.warmup_max_lr": 2e-4,
                "optimizer.params": {"lr": 2e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
                "zero_optimization.reduce_bucket_size": 25_000_000,
                "scheduler.params.warmup_num_steps": 500,
            },
        ),
        (HUGGING_FACE, A100X2, (32, 4, 256), "bf16", {"fp16.enabled": False, "optimizer.params.lr": 2e-4}),
        (HUGGING_FACE, CPU, (4, 1, 8), "fp32", {"fp16.enabled": False, "bf16.enabled": False}),
        (
            LLAMA_FACTORY,
            T4X2,
            (32, 4, 256),
            "fp16",
            {
                "optimizer.type": "AdamW",
                "optimizer.params.lr": 2e-4,
                "scheduler.type": "WarmupCosineLR",
                "scheduler.params.total_num_steps": 27_600,
            },
        ),
        (WITH_COMMENTS, T4X2, (8, 1, 16), "fp16", {"optimizer.params.weight_decay": 3e-7}),
        (
            ACCELERATE,
            A100X2,
            (4, 1, 8),
            "bf16",
            {
                "zero_optimization.stage": 2,
                "zero_optimization.overlap_comm": True,
                "zero_optimization.offload_optimizer.device": "none",
                "scheduler.params.warmup_max_lr": 2e-4,
                "scheduler.params.total_num_steps": 883_190,
            },
        ),
        (SWITCHED_OFF, CPU, (4, 1, 8), "fp32", {"zero_optimization.stage": 1}),
        (SMALLEST, T4X2, (32, 1, 64), "fp32", {"optimizer.type": "AdamW"}),
        (
            MUON,
            A100X2,
            (32, 1, 64),
            "bf16",
            {"gradient_clipping": 0, "optimizer.params": {"muon_lr": 0.02, "adam_lr": 1.25e-2}, "scheduler": None},
        ),
    ],
)
def test_a_file_from_elsewhere_trains(tmp_path, text, device, batch, precision, expected):
    result = resolved(text, tmp_path, device)
    assert (result.micro_batch, result.accumulation, result.train_batch) == batch
    assert result.precision == precision
    for path, value in expected.items():
        found = result.config
        for part in path.split("."):
            found = (found or {}).get(part)
        assert found == value, path
    assert '"auto"' not in json.dumps(result.config)
    for path in autos(json.loads(text)) if text is not WITH_COMMENTS else ():  # each is said, with the reason
        assert [note for note in result.notes if note.startswith(f"{path}: auto -> ") and note.endswith(")")], path


def autos(block, prefix=""):
    for key, value in block.items():
        if isinstance(value, dict):
            yield from autos(value, f"{prefix}{key}.")
        elif value == "auto":
            yield prefix + key


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (ZERO3, ["zero_optimization.stage: ", "offload_optimizer: ", "offload_param: ", "stage=2"]),
        (GETTING_STARTED, ["zero_optimization: true is not what belongs here", '{"stage": 2}']),
        (
            OLD_FEATURES,
            [
                "sparse_attention",
                "curriculum_learning",
                "progressive_layer_drop",
                "elasticity",
                "amp: not a key here: DeepSpeed has removed it.\n     As in 1.",
                "cpu_offload: not a key here: now it is offload_optimizer, which train.py",
                "moe: not a key here: experts are flags",
            ],
        ),
        (
            NEW_FEATURES,
            [
                "activation_checkpointing: ",
                "data_efficiency: ",
                "autotuning: ",
                "tensor_parallel: ",
                "compile: ",
                "torch_autocast: ",
                "hybrid_engine: ",
            ],
        ),
        (ONE_BIT, ["optimizer.type", '"OneBitAdam"']),
        (
            '{"learning_rate": 1e-4, "seed": 1, "num_experts": 4, "zero_stage": 2}',
            ["optimizer.params.lr?", "bufudu.seed?", "bufudu.num_experts?", "zero_optimization.stage?"],
        ),
    ],
)
def test_features_that_this_trainer_lacks_are_named_all_at_once(tmp_path, text, keys):
    with pytest.raises(UserError) as error:
        resolved(text, tmp_path, A100X2 if "bf16" in text else T4X2)
    assert [key for key in keys if key not in str(error.value)] == []


@pytest.mark.parametrize("text", [SMALLEST, ALL_AUTO], ids=["missing", "auto"])
def test_a_missing_optimizer_and_schedule_are_said(tmp_path, text):
    notes = resolved(text, tmp_path, T4X2).notes
    assert "optimizer: not written -> AdamW with lr 0.0002, as in ds_configs/t4x2.json" in notes
    assert any(
        note.startswith("scheduler: not written -> WarmupCosineLR, as in ds_configs/t4x2.json") for note in notes
    )


def test_keys_that_change_nothing_are_said(tmp_path):
    notes = resolved(SWITCHED_OFF, tmp_path, CPU).notes
    for key in ("aio", "checkpoint", "zero_optimization: stage3_max_live_parameters"):
        assert any(note.startswith(key) and "without effect" in note for note in notes), key


@pytest.mark.parametrize(("block", "package"), [("wandb", "wandb"), ("comet", "comet_ml")])
def test_a_tracker_without_its_package_is_refused_before_anything_starts(tmp_path, monkeypatch, block, package):
    text = json.dumps({"train_micro_batch_size_per_gpu": 4, block: {"enabled": True}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=f"{block}.enabled: the package {package} is not installed"):
        resolved(text, tmp_path, T4X2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert resolved(text, tmp_path, T4X2).config[block] == {"enabled": True}


def test_a_micro_batch_is_a_part_of_the_batch_that_is_written(tmp_path):
    run = replace(RUN, world_size=1)
    for batch, micro in ((100, 25), (96, 32), (7, 7), (31, 31)):
        config = check({"train_batch_size": batch}, run, T4X2, source="x").resolve(1000)
        assert (config.micro_batch, config.accumulation) == (micro, batch // micro)

"""Preflight of tiny runs, healthy and with planted faults: `worker_preflight.py FOLDER SCENARIO...`, once a rank.

FOLDER/corpus is a prepared folder. Rank 0 writes FOLDER/{world size}-{scenario}.json: the checks by id and all that
was printed. Faults are planted into the code that the run uses; nothing tells preflight of them.
"""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from cpu_fp16 import allow_fp16

from common.console import Console
from common.hardware import detect
from corpus.shards import Corpus
from model import CausalLM, ModelConfig, transformer
from model.init import init_weights
from model.packed_attention import PackedRows
from training import data_sampler
from training.checkpointing.export import gather_weights
from training.config.command_line import Options
from training.config.load import load
from training.config.resolve import Resolved, check
from training.config.settings import RunFacts
from training.context import RunContext
from training.data_sampler import SampleStream
from training.engine import build
from training.engine.build import build_engine
from training.preflight.runner import preflight
from training.processes.process_group import World
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
SEQ_LEN, STEPS = 64, 400
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
}
SMALL = ("train_batch_size=auto", "train_micro_batch_size_per_gpu=4", "gradient_accumulation_steps=1")
FP32 = ("t4x2", *SMALL, "fp16.enabled=false", "optimizer.params.lr=2e-3")
BF16 = ("t4x2", *SMALL, "fp16.enabled=false", "bf16.enabled=true", "optimizer.params.lr=2e-3")
PURE = ("bf16.bf16_master_weights_and_grads=true", "bf16.bf16_optimizer_states=true")
Fault = Callable[[], AbstractContextManager]


def shifted_by(offset: int) -> Fault:
    """Targets so many places on."""

    def tensors(stream: Any, rows: list[int], seq_len: int, _device: torch.device) -> tuple:
        ids = torch.from_numpy(stream.batch(rows, seq_len))
        last = ids.shape[1] - max(offset, 1)
        return ids[:, :last].contiguous(), ids[:, offset : offset + last].contiguous()

    return lambda: mock.patch.object(data_sampler, "tensors", tensors)


def padded(stream: Any, rows: list[int], seq_len: int, _device: torch.device) -> tuple:
    """A third of every row is padding, which counts."""
    ids = torch.from_numpy(stream.batch(rows, seq_len))
    ids[:, seq_len * 2 // 3 :] = 0
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


forward, block_forward, attention = CausalLM.forward, transformer.Block.forward, F.scaled_dot_product_attention


def loss_one_late(self: CausalLM, ids: torch.Tensor, targets: torch.Tensor, *divisor: float | None) -> Any:
    """A model that shifts targets that are shifted already, as Hugging Face's do with labels."""
    return forward(self, ids[:, :-1], targets[:, 1:], *divisor)


def never_still(self: transformer.Block, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Dropout that evaluation does not switch off."""
    x, update = block_forward(self, *args)
    return F.dropout(x, 0.1, training=True), update


def all_seeing(*args: Any, **more: Any) -> torch.Tensor:
    """Attention without its mask."""
    return attention(*args, **(more | {"is_causal": False, "attn_mask": None}))


def future() -> AbstractContextManager:
    """Everywhere: the network attends to packed rows in a way of its own on CPU."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", all_seeing))
    stack.enter_context(
        mock.patch.object(
            PackedRows,
            "attend",
            lambda _rows, q, k, v: all_seeing(
                q, *(t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
            ),
        )
    )
    return stack


def detached_norm(
    self: transformer.RMSNorm, x: torch.Tensor, update: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms that learn nothing."""
    return self.kernels.add_norm(x, update, self.weight.detach(), self.eps)


def large_embedding(module: CausalLM, config: ModelConfig, seed: int) -> None:
    """Ten times what it should be."""
    init_weights(module, config, seed)
    module.model.embed_tokens.weight.data.mul_(10)


def kept_gradients(*args: Any, **more: Any) -> Any:
    """Every gradient has all those before it in it."""
    built = build_engine(*args, **more)
    for parameter in built.module.parameters():
        kept: list[torch.Tensor] = []

        def add(gradient: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept[:] = [gradient + kept[0] if kept else gradient.clone()]
            return kept[0]

        parameter.register_hook(add)
    return built


def too_large(self: CausalLM, ids: torch.Tensor, targets: torch.Tensor, *divisor: float | None) -> Any:
    """Memory for 16 rows and no more."""
    if len(ids) > 16:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return forward(self, ids, targets, *divisor)


class Scenario:
    """A run and what is wrong with it; `run` returns what preflight says."""

    def __init__(
        self,
        *fault: Fault,
        recipe: tuple[str, ...] = FP32,
        seconds_left: float | None = None,
        val_is_train: bool = False,
        steps: int = STEPS,
        **shape: Any,
    ) -> None:
        self.fault, self.recipe, self.shape, self.steps = fault, recipe, SHAPE | shape, steps
        self.seconds_left, self.val_is_train = seconds_left, val_is_train

    def subject(self, folder: Path, world: World) -> RunContext:
        """As train.py would put it together."""
        corpus = Corpus.open(folder / "corpus", verify="size")
        if self.val_is_train:
            corpus.manifest.splits["val"] = corpus.manifest.splits["train"]
        made = corpus.manifest
        config = ModelConfig(
            vocab_size=made.vocab_size,
            bos_token_id=made.bos_id,
            eos_token_id=made.eos_id,
            pad_token_id=made.pad_id,
            max_position_embeddings=SEQ_LEN,
            **self.shape,
        )
        name, *overrides = self.recipe
        output = folder / "run"
        facts = RunFacts(
            world_size=world.size,
            epochs=1,
            max_steps=self.steps,
            output=output,
            model=config,
        )
        device = detect()
        resolved = check(load(CONFIGS / f"{name}.json", overrides), facts, device, source=name).resolve(
            corpus.split("train").num_rows(SEQ_LEN)
        )
        options = Options(max_seq_len=SEQ_LEN, max_steps=self.steps)
        console = Console(world.rank, io.StringIO())
        stop = StopRequest(console)
        stop.deadline = None if self.seconds_left is None else time.monotonic() + self.seconds_left
        return RunContext(
            options,
            output,
            config,
            resolved,
            corpus,
            world,
            device,
            console,
            stop,
            Watchdog(world.rank, world.size, console, stop),
        )

    def run(self, folder: Path, world: World) -> dict[str, Any]:
        """Preflight, with the fault in place."""
        subject = self.subject(folder, world)
        with ExitStack() as stack:
            for fault in self.fault:
                stack.enter_context(fault())
            failed = preflight(subject)
        record = json.loads((subject.output / "preflight.json").read_text(encoding="utf-8")) if world.rank == 0 else {}
        return {
            "failed": failed,
            "record": record,
            "printed": subject.console.stream.getvalue(),
            "files": sorted(path.name for path in subject.output.rglob("*") if path.is_file()),
        }


class Identity(Scenario):
    """The same training before and after a preflight."""

    def run(self, folder: Path, world: World) -> dict[str, Any]:
        """Losses, and whether all weights are the same bits."""
        subject, torch_state = self.subject(folder, world), torch.get_rng_state()
        before, weights = train(subject)
        torch.set_rng_state(torch_state)
        super().run(folder, world)
        randomness = bool(torch.equal(torch_state, torch.get_rng_state()))
        after, again = train(subject)
        return {
            "before": before,
            "after": after,
            "randomness": randomness,
            "same": all(torch.equal(weights[name], again[name]) for name in weights),
            "weights": len(weights),
        }


def train(subject: RunContext) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Four steps of a run's own."""
    built = build_engine(subject.config, without_monitor(subject.resolved).config, seed=42, rank=subject.world.rank)
    stream, losses = subject.corpus.split("train"), []
    order = SampleStream(stream.num_rows(SEQ_LEN), 42)
    for step in range(4):
        [rows] = order.micro_batches(
            step, subject.world.rank, micro_batch=4, accumulation=1, world_size=subject.world.size
        )
        found = built(*data_sampler.tensors(stream, rows, SEQ_LEN, built.device))
        built.backward(found.total)
        losses.append(found.lm.item())
        built.step()
    weights = {name: weight.clone() for name, weight in gather_weights(built, subject.config).items()}
    built.destroy()
    return losses, weights


def without_monitor(resolved: Resolved) -> Resolved:
    """No TensorBoard."""
    return replace(resolved, config=json.loads(json.dumps(resolved.config)) | {"tensorboard": {"enabled": False}})


SCENARIOS: dict[str, Scenario] = {
    "moe": Scenario(),
    "dense": Scenario(use_moe=False),
    "bf16": Scenario(recipe=BF16),
    "muon": Scenario(recipe=("cpu_x2", *SMALL)),
    "fp16": Scenario(recipe=("t4x2", *SMALL, "optimizer.params.lr=2e-3")),
    "accumulated": Scenario(recipe=(*FP32, "gradient_accumulation_steps=4", "train_batch_size=auto")),
    "one document": Scenario(mask_documents=False),
    "split fp16": Scenario(ep_size=2, recipe=("t4x2_ep2", *SMALL, "optimizer.params.lr=2e-3")),
    "shifted by two": Scenario(shifted_by(2)),
    "not shifted": Scenario(shifted_by(0)),
    "shifted in the loss": Scenario(lambda: mock.patch.object(CausalLM, "forward", loss_one_late)),
    "padding": Scenario(lambda: mock.patch.object(data_sampler, "tensors", padded)),
    "future": Scenario(future),
    "dropout": Scenario(lambda: mock.patch.object(transformer.Block, "forward", never_still)),
    "embedding": Scenario(lambda: mock.patch.object(build, "init_weights", large_embedding)),
    "no gradient": Scenario(lambda: mock.patch.object(transformer.RMSNorm, "forward", detached_norm)),
    "kept": Scenario(lambda: mock.patch.object(build, "build_engine", kept_gradients)),
    "kept muon": Scenario(lambda: mock.patch.object(build, "build_engine", kept_gradients), recipe=("cpu_x2", *SMALL)),
    "pure bf16": Scenario(recipe=(*BF16, *PURE, "optimizer.params.lr=2e-4")),
    "learning rate too high": Scenario(recipe=(*FP32, "optimizer.params.lr=0.2", "scheduler=null")),
    "learning rate too low": Scenario(recipe=(*FP32, "optimizer.params.lr=2e-5")),
    "no learning rate": Scenario(steps=2),
    "overlap": Scenario(val_is_train=True),
    "memory": Scenario(
        lambda: mock.patch.object(CausalLM, "forward", too_large), recipe=(*FP32, "train_micro_batch_size_per_gpu=32")
    ),
    "time": Scenario(seconds_left=1.0),
    "identity": Identity(ep_size=2),
}


def main(folder: Path, names: list[str]) -> None:
    """All scenarios in one process group."""
    allow_fp16()
    world = World.from_environment()
    dist.init_process_group("gloo")
    for name in names:
        try:
            result = SCENARIOS[name].run(folder, world)
        except Exception:
            result = {"broken": traceback.format_exc()}
        if world.rank == 0:
            (folder / f"{world.size}-{name}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

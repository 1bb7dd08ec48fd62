"""Weights out of a running engine, under their Hugging Face names, whichever rank holds them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from common.files import sync
from common.uncompiled import on_meta_device
from corpus.tokenizer import write_hf_tokenizer
from model import CausalLM, ModelConfig, save_model
from model.hf import hf_name, is_expert
from training.checkpointing.write_failures import on_all_ranks
from training.engine.internals import expert_group
from training.engine.protocol import Engine
from training.processes.process_group import gather_from_ranks


def gather_weights(engine: Engine, config: ModelConfig) -> dict[str, Tensor]:
    """Return all weights by Hugging Face name, on every rank; collective.

    Tensors of the rank's own are views of the live weights, not copies: use them before the next step.
    """
    own = {hf_name(name, engine.module): parameter.detach() for name, parameter in engine.module.named_parameters()}
    if config.use_moe and config.ep_size > 1:
        experts = {name: tensor.cpu() for name, tensor in own.items() if is_expert(name)}
        device = next(iter(own.values())).device
        for part in gather_from_ranks(experts, expert_group(config.ep_size)):
            own |= {name: tensor.to(device) for name, tensor in part.items() if name not in own}
    return own


def inference_model(engine: Engine, config: ModelConfig) -> CausalLM:
    """Return the live weights in the form that generates; collective.

    No copy on a GPU. On CPU it is one in fp32: for the few rows of a decoding step bf16 takes half as long again.
    """
    with on_meta_device():
        model = CausalLM(config.for_inference())
    model.load_state_dict(gather_weights(engine, config), strict=True, assign=True)
    return (model.float() if engine.device.type == "cpu" else model).eval()


def export_model(engine: Engine, config: ModelConfig, tokenizer: Path, folder: Path) -> None:
    """Write `folder` as a Hugging Face model; a collective call, rank 0 writes.

    DiskFull on all ranks if it cannot; the model that was there stays as it was.
    """
    weights = gather_weights(engine, config)
    on_all_ranks(lambda: dist.get_rank() or _write(folder, config, tokenizer, weights), folder)


def _write(folder: Path, config: ModelConfig, tokenizer: Path, weights: dict[str, Tensor]) -> None:
    """Write all files beside the folder, then move them, the weights last: the others stay the same through a run."""
    beside = folder.with_name(folder.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        write_hf_tokenizer(tokenizer, beside)
        save_model(beside, config, weights)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(beside.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, folder / path.name)
        sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

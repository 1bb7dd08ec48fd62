"""`--init_from`: a trained model that a run begins from, its sizes, its tokenizer and its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from common.errors import UserError
from common.files import read_object
from common.model_folder import find_model
from corpus.shards import Corpus
from corpus.tokenizer import load_tokenizer
from model.config import ModelConfig, ModelConfigError
from training.config.command_line import Options, model_flags

if TYPE_CHECKING:
    from torch import Tensor, nn

FLAG = "--init_from"
# What may differ from the base: it changes no weight's shape nor what the network computes without training
_FREE = ("router_aux_loss_coef", "capacity_factor", "ep_size", "max_position_embeddings", "initializer_range")
_NEEDED = ("config.json", "tokenizer.json")


def with_base(options: Options) -> Options:
    """Return the options of a run with its base filled in; UserError if there is none, or they contradict it."""
    if options.init_from is None:
        return options
    folder = find_model(options.init_from, FLAG)
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise UserError(f"{FLAG} {folder} has no {name}: give a run, or a folder with a model and its tokenizer")
    config = read_config(folder)
    sizes = asdict(config)
    differing = [
        f"--{name} {value} ({sizes[name]} there)"
        for name, value in options.model.items()
        if name not in _FREE and value != sizes[name]
    ]
    if differing:
        raise UserError(f"{FLAG} {folder} is another network than {', '.join(differing)}: leave these out")
    if options.vocab_size is not None:
        raise UserError(f"--vocab_size is for a tokenizer trained here, and {FLAG} brings its own: leave one out")
    kept = {name: value for name, value in sizes.items() if name in model_flags() and name != "ep_size"}
    prepared = any(path.is_dir() for path in options.data)
    return replace(
        options,
        init_from=folder,
        model=kept | options.model,
        vocab_size=config.vocab_size,
        tokenizer=options.tokenizer if prepared else _tokenizer(options, folder),
    )


def _tokenizer(options: Options, folder: Path) -> Path:
    own = folder / "tokenizer.json"
    if options.tokenizer and not same_tokenizer(load_tokenizer(options.tokenizer), load_tokenizer(own)):
        raise UserError(f"--tokenizer {options.tokenizer} is not the one of {FLAG} {folder}: leave it out")
    return own


def read_config(folder: Path) -> ModelConfig:
    """Return the network of a model's folder, ours or a Qwen3 of another origin; UserError if it cannot be trained."""
    from model.foreign import read_qwen3

    try:
        ours = "bufudu" in read_object(folder / "config.json")
        return ModelConfig.from_hf(folder / "config.json") if ours else read_qwen3(folder / "config.json")
    except ModelConfigError as error:
        raise UserError(f"{FLAG}: {error}") from None


def check_tokenizer(init_from: Path | None, corpus: Corpus) -> None:
    """Raise UserError unless a corpus was prepared with the tokenizer of the base."""
    if init_from is None:
        return
    own = init_from / "tokenizer.json"
    if not same_tokenizer(load_tokenizer(own), load_tokenizer(corpus.tokenizer_path)):
        raise UserError(
            f"{corpus.folder} was prepared with another tokenizer than that of {FLAG}: prepare it again with "
            f"--tokenizer {own}"
        )


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers encode alike, whatever they put around a text."""
    return _encoding(one) == _encoding(other)


def _encoding(tokenizer: Tokenizer) -> dict[str, Any]:
    parts = json.loads(tokenizer.to_str())
    return {name: parts[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")}


def load_base_weights(model: nn.Module, folder: Path) -> None:
    """Give every parameter of a network the value that it has in `folder`; UserError if one is missing or differs."""
    import torch

    from model.foreign import read_weights
    from model.hf import hf_name

    try:
        weights: dict[str, Tensor] = read_weights(folder)
    except ModelConfigError as error:
        raise UserError(f"{FLAG}: {error}") from None
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            name = hf_name(own, model)
            found = weights.get(name)
            if found is None or found.shape != parameter.shape:
                what = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
                raise UserError(f"{FLAG} {folder}: {name} {what}; its config.json describes another network")
            parameter.copy_(found)

"""The flags of train.py. A flag given wins over the JSON's "bufudu" block, which wins over the default."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from common.command_line import Parser, amount, at_least_zero, boolean, duration, one_of, positive, whole
from common.errors import UserError
from corpus.settings import DEDUP_CHOICES, REPETITION_CHOICES
from model.config import ModelConfig, ModelConfigError


def _flag(default: Any, text: str, convert: Callable[[str], Any], metavar: str | None = None, **more: Any) -> Any:
    meta = {"help": text, "convert": convert, "metavar": metavar, **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Options:
    """A run's flags apart from the model's sizes; `model` holds the sizes that were given."""

    deepspeed_config: Path | None = _flag(None, "the experiment; chosen by the machine if not given", Path, "FILE")
    data: list[Path] = _flag(
        [],
        "a folder from prepare.py, or .jsonl[.gz|.zst] files; the sample corpus if not given",
        Path,
        "PATH",
        nargs="+",
    )
    output: Path | None = _flag(None, "the run's folder; runs/CONFIG-DATA if not given", Path, "DIR")
    tokenizer: Path | None = _flag(None, "tokenizer.json for .jsonl data; trained on it if not given", Path, "FILE")
    vocab_size: int | None = _flag(
        None, "entries of a tokenizer trained here; 6400, for the sample stories 2000", positive, "N"
    )
    dedup: str | None = _flag(
        None,
        "documents of .jsonl data that repeat others: none is dropped, exact or near ones; exact if not given",
        one_of(*DEDUP_CHOICES),
        "|".join(DEDUP_CHOICES),
    )
    repetition: str | None = _flag(
        None,
        "documents of .jsonl data that repeat themselves; drop if not given",
        one_of(*REPETITION_CHOICES),
        "|".join(REPETITION_CHOICES),
    )
    epochs: float = _flag(5.0, "passes over the training data", amount, "N")
    max_steps: int | None = _flag(None, "optimizer steps; overrides --epochs", positive, "N")
    max_seq_len: int = _flag(512, "tokens in a row", positive, "N")
    log_interval: int = _flag(50, "optimizer steps between two lines of metrics", positive, "N")
    eval_interval: int | None = _flag(
        None, "steps between evaluations; a twentieth of the run if not given", positive, "N"
    )
    eval_tokens: int = _flag(200_000, "validation tokens an evaluation, spread over the split; 0 is all", whole, "N")
    patience: int | None = _flag(
        None, "stop after N evaluations without a better validation loss; the best is kept", positive, "N"
    )
    sample_interval: int | None = _flag(
        None, "steps between written samples; 1000, or a tenth of the run if less", positive, "N"
    )
    save_interval: int = _flag(1000, "steps between checkpoints", positive, "N")
    keep_last: int = _flag(2, "checkpoints kept", positive, "K")
    time_limit: float | None = _flag(None, "save and stop after this long, e.g. 11h30m", duration, "TIME")
    budget: float | None = _flag(
        None,
        "time of all sessions together, e.g. 25h: the schedule ends with it; instead of --epochs or --max_steps",
        duration,
        "TIME",
    )
    resume: str = _flag(
        "auto",
        "auto continues the run in --output, never starts anew, or a checkpoint's folder",
        str,
        "auto|never|PATH",
    )
    on_divergence: str = _flag(
        "stop",
        "when loss, gradients or weights are not finite: stop with a report, or "
        "rollback, go back a checkpoint and leave the batch out",
        one_of("stop", "rollback"),
        "stop|rollback",
    )
    max_rollbacks: int = _flag(3, "times that a run may go back", whole, "N")
    accept_changes: bool = _flag(
        False, "continue a run with a JSON that changes its training; what differs is listed", bool, action="store_true"
    )
    set: list[str] = _flag(
        [], "change a value of the JSON, e.g. optimizer.params.lr=3e-4", str, "KEY=VALUE", nargs="+", action="extend"
    )
    seed: int = _flag(42, "of the initial weights and the order of the data", whole, "N")
    preflight: bool = _flag(
        False, "check the run, then stop: status 0 if nothing failed, 1 otherwise", bool, action="store_true"
    )
    skip_preflight: bool = _flag(False, "start a new run without checking it first", bool, action="store_true")
    plan: bool = _flag(False, "print sizes, memory and hours, then stop", bool, action="store_true")
    plan_rows: int | None = _flag(None, "plan for this many training rows instead of reading --data", positive, "N")
    plan_utilisation: float = _flag(0.1, "share of the peak FLOP/s that --plan counts with", amount, "SHARE")
    model: dict[str, Any] = field(default_factory=dict)


_TYPES: dict[str, Callable[[str], Any]] = {
    "int": positive,
    "int | None": positive,
    "float": at_least_zero,
    "bool": boolean,
}
# lists, needed before a block is read, or what only the person at the keyboard can mean
_COMMAND_LINE_ONLY = (
    "deepspeed_config",
    "set",
    "plan",
    "data",
    "preflight",
    "skip_preflight",
    "accept_changes",
    "budget",
)
_FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_MODEL_HELP = {
    "capacity_factor": "cap an expert at this multiple of its even share while training; 0 drops no token",
    "mask_documents": "hide packed documents from each other",
    "use_moe": "experts (true) or a dense model (false)",
    "ep_size": "ranks that the experts of a layer are split over",
    "num_experts_per_tok": "experts a token passes through",
    "router_aux_loss_coef": "weight of the load-balancing loss",
}


def model_flags() -> list[str]:
    """Names of the flags that shape the network."""
    return [f.name for f in fields(ModelConfig) if f.name not in _FROM_TOKENIZER]


def run_flags() -> list[str]:
    """All flags that a JSON's "bufudu" block may give a default for."""
    own = [f.name for f in fields(Options) if f.metadata and f.name not in _COMMAND_LINE_ONLY]
    return own + model_flags()


def _parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description=description,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    run = parser.add_argument_group("the run")
    for option in (f for f in fields(Options) if f.metadata):
        more = {key: option.metadata[key] for key in ("nargs", "action") if key in option.metadata}
        if more.get("action") != "store_true":
            more |= {"type": option.metadata["convert"], "metavar": option.metadata["metavar"]}
        default = "" if option.default in (None, MISSING, False) else f" (default {option.default})"
        run.add_argument(f"--{option.name}", help=option.metadata["help"] + default, **more)
    shape = parser.add_argument_group("the model")
    kinds = {f.name: (f.type, f.default) for f in fields(ModelConfig)}
    for name in model_flags():
        kind, default = kinds[name]
        shape.add_argument(
            f"--{name}",
            type=_TYPES[kind],
            metavar="true|false" if kind == "bool" else "N",
            help=f"{_MODEL_HELP.get(name, '')} (default {default})".lstrip(),
        )
    return parser


def parse(argv: Sequence[str], description: str) -> dict[str, Any]:
    """The flags that were given, by name; UserError for a wrong one."""
    given = vars(_parser(description).parse_args(argv))
    given.pop("local_rank", None)
    _judge_budget(given)
    return given


def _judge_budget(given: dict[str, Any]) -> None:
    """--budget says how long a run is, and needs a machine to measure that on."""
    others = [f"--{name}" for name in ("epochs", "max_steps", "plan") if given.get(name)]
    if "budget" in given and others:
        what = (
            "--plan trains nothing that could be measured"
            if others == ["--plan"]
            else (f"{' and '.join(others)} say{'s' if len(others) == 1 else ''} how long the run is, too")
        )
        raise UserError(f"--budget: {what}: leave one out")


def options(given: dict[str, Any], file_defaults: dict[str, Any]) -> Options:
    """Merge flags over the JSON's "bufudu" block over the defaults; UserError if the block holds a wrong value."""
    merged = {name: _convert(name, value) for name, value in file_defaults.items()} | given
    shape = {name: merged.pop(name) for name in model_flags() if name in merged}
    return Options(**merged, model=shape)


def _convert(name: str, value: Any) -> Any:
    """Judge a value of the "bufudu" block as if it had been written on the command line."""
    own = {f.name: f.metadata["convert"] for f in fields(Options) if f.metadata}
    kinds = {f.name: f.type for f in fields(ModelConfig)}
    convert = own.get(name) or _TYPES[kinds[name]]
    try:
        return convert(str(value).lower() if isinstance(value, bool) else str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f'"bufudu" block, {name}: {error}') from None


def model_config(run: Options, *, vocab_size: int, begin_id: int, end_id: int, pad_id: int) -> ModelConfig:
    """The network that the flags describe; UserError lists every size that does not fit."""
    shape = dict(run.model)
    # room to generate beyond the training length; rotary positions need no weights for it
    shape.setdefault("max_position_embeddings", max(ModelConfig.max_position_embeddings, run.max_seq_len))
    config = ModelConfig(
        vocab_size=vocab_size, bos_token_id=begin_id, eos_token_id=end_id, pad_token_id=pad_id, **shape
    )
    try:
        config.validate()
    except ModelConfigError as error:
        raise UserError(f"the model cannot be built: {error}") from None
    return config

"""The flags of train.py. The command line wins over the JSON's "bufudu" block, which wins over the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any

from common.command_line import Parser, amount, at_least_zero, boolean, duration, one_of, positive, whole
from common.errors import UserError
from common.files import printable
from corpus.settings import DEDUP_CHOICES, REPETITION_CHOICES
from model.config import ModelConfig, ModelConfigError
from training.config import foreign_flags
from training.config.problems import Problems, show
from training.config.schema import OWN_BLOCK, nearest

Convert = Callable[[str], Any]


def _flag(default: Any, text: str, convert: Convert, metavar: str | None = None, **more: Any) -> Any:
    metadata = {"help": text, "convert": convert, "metavar": metavar, **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _choice(default: Any, text: str, *choices: str) -> Any:
    return _flag(default, text, one_of(*choices), "|".join(choices))


def _switch(text: str) -> Any:
    return _flag(False, text, boolean, action="store_true")


@dataclass(frozen=True)
class Options:
    """The flags of a run; `model` holds those model sizes that were given."""

    deepspeed_config: Path | None = _flag(
        None, "DeepSpeed JSON of the experiment; if not given, the one in ds_configs/ for this machine", Path, "FILE"
    )
    set: list[str] = _flag(
        [], "change values of the JSON, e.g. optimizer.params.lr=3e-4", str, "KEY=VALUE", nargs="+", action="extend"
    )
    output: Path | None = _flag(None, "folder of the run; if not given, runs/CONFIG-DATA", Path, "DIR")
    seed: int = _flag(42, "seed of the initial weights and of the data order", whole, "N")
    data: list[Path] = _flag(
        [], "a folder of prepare.py, or text (PATH:0.7 in a mixture); without it, stories", Path, "PATH", nargs="+"
    )
    init_from: Path | None = _flag(
        None, "begin with the weights, sizes and tokenizer of a run, or of a Qwen3(-MoE) folder", Path, "DIR"
    )
    tokenizer: Path | None = _flag(
        None, "tokenizer.json for text; if not given, one is trained on the data", Path, "FILE"
    )
    vocab_size: int | None = _flag(
        None, "entries of a tokenizer trained here; if not given, 6400, or 2000 for the stories", positive, "N"
    )
    dedup: str | None = _choice(
        None, "which duplicate documents of text to drop: none, exact or near ones; if not given, exact", *DEDUP_CHOICES
    )
    repetition: str | None = _choice(
        None, "what to do with documents of text that repeat themselves; if not given, drop", *REPETITION_CHOICES
    )
    text_key: str | None = _flag(
        None, 'key or column of the text; if not given, "text", or the only one with text in it', str, "KEY"
    )
    text_template: str | None = _flag(None, 'text made of several keys, such as "{title}\\n{content}"', str, "TEXT")
    split_txt: bool = _switch("take each stretch between blank lines of a .txt file as a document")
    max_seq_len: int = _flag(512, "tokens in a row, the sequence that the model is trained on", positive, "N")
    epochs: float = _flag(5.0, "passes over the training data", amount, "N")
    max_steps: int | None = _flag(None, "number of optimizer steps, instead of --epochs", positive, "N")
    budget: float | None = _flag(
        None, "time for all sessions, e.g. 25h, instead of --epochs: the schedule ends with it", duration, "TIME"
    )
    time_limit: float | None = _flag(None, "save and stop this session after, e.g., 11h30m", duration, "TIME")
    patience: int | None = _flag(
        None, "stop after N evaluations without a better validation loss; the best model is kept", positive, "N"
    )
    log_interval: int = _flag(50, "optimizer steps between two lines of metrics", positive, "N")
    eval_interval: int | None = _flag(
        None, "optimizer steps between evaluations; if not given, a twentieth of the run", positive, "N"
    )
    eval_tokens: int = _flag(
        200_000,
        "validation tokens in an evaluation, spread over the split; 0 means all "
        "(some 20,000 before the first step of a new network)",
        whole,
        "N",
    )
    sample_interval: int | None = _flag(
        None, "optimizer steps between text samples; if not given, 1000 or a tenth of a shorter run", positive, "N"
    )
    save_interval: int = _flag(1000, "optimizer steps between checkpoints", positive, "N")
    keep_last: int = _flag(2, "checkpoints to keep", positive, "K")
    resume: str = _flag(
        "auto",
        "auto continues the run in --output if there is one, never starts anew, PATH continues from that checkpoint",
        str,
        "auto|never|PATH",
    )
    accept_changes: bool = _switch("continue a run although the JSON changes its training; the differences are listed")
    on_divergence: str = _choice(
        "stop",
        "when the loss, gradients or weights are not finite: stop with a report, or rollback to the last checkpoint "
        "and skip the batch",
        "stop",
        "rollback",
    )
    max_rollbacks: int = _flag(3, "rollbacks before the run stops", whole, "N")
    kernels: str = _choice(
        "auto", "on a GPU: auto takes the fused kernels that are right and no slower here, plain none", "auto", "plain"
    )
    preflight: bool = _switch("check the run, then exit: status 0 if no check failed, 1 otherwise")
    skip_preflight: bool = _switch("start a new run without checking it first")
    tune: float | None = _flag(
        None,
        "measure micro-batches and ZeRO settings on this machine for so many minutes (10), write the fastest as "
        "ds_configs/tuned-NAME.json, then exit",
        amount,
        "MINUTES",
        nargs="?",
        const=10.0,
    )
    plan: bool = _switch("print model size, memory and hours, then exit")
    plan_rows: int | None = _flag(
        None, "with --plan: count with this many training rows instead of reading --data", positive, "N"
    )
    plan_utilisation: float = _flag(0.1, "with --plan: share of the peak FLOP/s that training reaches", amount, "SHARE")
    model: dict[str, Any] = field(default_factory=dict)


_GROUPS = {  # the flag that each group of --help begins with
    "deepspeed_config": "the experiment",
    "data": "the data",
    "epochs": "the length of the run",
    "log_interval": "evaluations, samples and checkpoints",
    "resume": "continuing and recovering",
    "kernels": "checks and planning",
}
_MODEL_HELP = {
    "hidden_size": "width of the residual stream",
    "num_hidden_layers": "transformer layers",
    "num_attention_heads": "query heads of a layer",
    "num_key_value_heads": "key and value heads of a layer (grouped-query attention)",
    "head_dim": "width of a head; if not given, hidden_size / num_attention_heads",
    "intermediate_size": "width of the feed-forward layer of a dense model",
    "use_moe": "mixture of experts (true) or a dense model (false)",
    "moe_intermediate_size": "width of an expert",
    "num_experts": "experts of a layer",
    "num_experts_per_tok": "experts that a token passes through",
    "router_aux_loss_coef": "weight of the load-balancing loss",
    "capacity_factor": "cap an expert at this multiple of its even share while training; 0 drops no token",
    "ep_size": "ranks that the experts of a layer are split over",
    "max_position_embeddings": "longest sequence in generation; at least max_seq_len if not given",
    "rope_theta": "base of the rotary position embedding",
    "rms_norm_eps": "epsilon of the norms",
    "initializer_range": "standard deviation of the initial weights",
    "mask_documents": "whether attention stops at the borders of packed documents",
}
# Lists, what is needed before the block is read, and what only the person at the keyboard can decide
_COMMAND_LINE_ONLY = (
    "deepspeed_config",
    "set",
    "plan",
    "tune",
    "data",
    "preflight",
    "skip_preflight",
    "accept_changes",
    "budget",
)
_FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_CONVERTERS: dict[type, Convert] = {int: positive, NoneType: positive, float: at_least_zero, bool: boolean}
_LONGEST_VALUE = 1000  # characters: a path may be long


def _model_defaults() -> dict[str, Any]:
    return {name: value for name, value in vars(ModelConfig()).items() if name not in _FROM_TOKENIZER}


def model_flags() -> list[str]:
    """Return the names of the flags that shape the network."""
    return list(_model_defaults())


def _file_converters() -> dict[str, Convert]:
    """Return the flags that a JSON's "bufudu" block may set, each with its converter."""
    own = {f.name: f.metadata["convert"] for f in fields(Options) if f.metadata and f.name not in _COMMAND_LINE_ONLY}
    return own | {name: _CONVERTERS[type(default)] for name, default in _model_defaults().items()}


def run_flags() -> list[str]:
    """Return the names of the flags that a JSON's "bufudu" block may set."""
    return list(_file_converters())


def _parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description=description,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    group = parser
    for option in (f for f in fields(Options) if f.metadata):
        if option.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[option.name])
        more = {key: option.metadata[key] for key in ("nargs", "action", "const") if key in option.metadata}
        if more.get("action") != "store_true":
            more |= {"type": option.metadata["convert"], "metavar": option.metadata["metavar"]}
        default = "" if option.default in (None, MISSING, False) else f" (default {option.default})"
        group.add_argument(f"--{option.name}", help=option.metadata["help"] + default, **more)
    group = parser.add_argument_group("the model")
    for name, default in _model_defaults().items():
        group.add_argument(
            f"--{name}",
            type=_CONVERTERS[type(default)],
            metavar="true|false" if isinstance(default, bool) else "N",
            help=_MODEL_HELP[name] + ("" if default is None else f" (default {str(default).lower()})"),
        )
    return parser


def parse(argv: Sequence[str], description: str, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Return the flags that were given, by name; raise UserError for a wrong one.

    Flags of other trainers are taken as ours; `say` gets a line for each.
    """
    words, lines = foreign_flags.translate(argv)
    given = vars(_parser(description).parse_args(words))
    for line in lines:
        say(line)
    given.pop("local_rank", None)
    others = [f"--{name}" for name in ("epochs", "max_steps") if given.get(name)]
    if "budget" in given and others:
        both = "say" if len(others) > 1 else "says"
        raise UserError(f"--budget: {' and '.join(others)} {both} how long the run is, too: leave one out")
    others = [f"--{name}" for name in ("plan", "preflight", "budget") if given.get(name)]
    if "tune" in given and others:
        raise UserError(f"--tune: {others[0]} is another thing to do: leave one out")
    return given


def file_flags(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the flags that the "bufudu" block of a DeepSpeed JSON sets, converted as on the command line.

    DeepSpeed has no key for some choices that belong to an experiment, such as {"ep_size": 2}. Raise a UserError that
    names everything that is wrong with the block; `source` is what it calls the file.
    """
    block, converters, values, problems = config.get(OWN_BLOCK) or {}, _file_converters(), {}, Problems()
    if not isinstance(block, dict):
        problems.add(OWN_BLOCK, f"{show(block)} is no block.", 'Write flags with their values, such as {"ep_size": 2}.')
        block = {}
    for name, value in block.items():
        key = f"{OWN_BLOCK}.{name}"
        if name in _COMMAND_LINE_ONLY:
            problems.add(key, "belongs on the command line alone.", f"Take it out, and give --{name}.")
        elif name not in converters:
            guess = nearest(name, converters)
            hint = f"Did you mean {guess}?" if guess else f"The flags here are {', '.join(sorted(converters))}."
            problems.add(key, "train.py has no such flag.", hint)
        elif isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > _LONGEST_VALUE):
            problems.add(key, f"{show(value)} is not what belongs here.", f"Write a single value, as after --{name}.")
        elif value is not None:
            try:
                values[name] = converters[name](str(value).lower() if isinstance(value, bool) else str(value))
            except (argparse.ArgumentTypeError, ValueError) as error:
                problems.add(key, f"{printable(error)}.", f"Write it as after --{name}.")
    problems.raise_if_any(source)
    return values


def options(given: dict[str, Any], from_file: dict[str, Any]) -> Options:
    """Merge the flags of the command line over those of the file."""
    merged = from_file | given
    sizes = {name: merged.pop(name) for name in model_flags() if name in merged}
    return Options(**merged, model=sizes)


def model_config(run: Options, *, vocab_size: int, bos_id: int = 1, eos_id: int = 2, pad_id: int = 0) -> ModelConfig:
    """Return the network that the flags describe; raise a UserError that lists every size that does not fit."""
    sizes = dict(run.model)
    # generation may go beyond the training length; rotary positions need no weights for it
    positions = sizes.setdefault("max_position_embeddings", max(ModelConfig().max_position_embeddings, run.max_seq_len))
    if positions < run.max_seq_len:
        raise UserError(
            f"--max_position_embeddings {positions}: rows have {run.max_seq_len} tokens (--max_seq_len), and other "
            "programs would keep to the smaller one; give at least as many, or leave it out"
        )
    try:
        config = ModelConfig(
            vocab_size=vocab_size, bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=pad_id, **sizes
        )
        config.validate()
    except ModelConfigError as error:
        raise UserError(f"the model cannot be built: {error}") from None
    return config

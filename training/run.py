"""From flags to a finished run: choose, prepare, resolve, build, continue, train, sum up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from corpus.errors import UserError
from corpus.pipeline import fingerprint, prepare
from corpus.report import loss_to_beat
from corpus.shards import Corpus
from corpus.stories import write_sample_corpus
from model import ModelConfig, count_parameters
from training import arguments, checkpoint, disk
from training import budget as budgets
from training.arguments import Options
from training.console import Console
from training.device import Device, detect
from training.distributed import World, check_visible, join, keep_freed_memory, set_threads, told
from training.ds_config import Resolved, RunFacts, load, resolve, run_defaults
from training.ending import guarded
from training.lock import RunLock
from training.preflight.cost_checks import Cost
from training.preflight.runner import Subject, preflight
from training.progress import human_time
from training.run_state import RunState, check_config, check_identity
from training.stopping import StopRequest
from training.watchdog import Watchdog

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
DATA_FOLDER = Path("data")
CLEANING = ("dedup", "repetition")  # flags that prepare.py has too
# Stories, and whether of the hamlet (fewer people and plots) rather than the village: minutes on either device
SAMPLE_STORIES = {"cpu": (44_000, True), "cuda": (200_000, False)}
ROWS_UNKNOWN = 10**9  # stands in until the corpus is prepared, to judge the JSON before hours of tokenising


def main(argv: Sequence[str], description: str) -> int:
    """Exit status of train.py: 0 for a run that ended as it should, 2 for wrong input, 1 for a fault of ours."""
    world = World.from_environment()
    console = Console(world.rank)
    stop = StopRequest(console)
    watchdog = Watchdog(world.rank, world.size, console, stop)
    with stop.listening():
        watchdog.begin()
        return guarded(lambda: _run(arguments.parse(argv, description), world, console, stop, watchdog),
                       rank=world.rank, console=console, stop=stop, watchdog=watchdog)


def _run(given: dict[str, Any], world: World, console: Console, stop: StopRequest, watchdog: Watchdog) -> int:
    device = detect()
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for a GPU, and warn
    path = given.get("deepspeed_config") or _default_config(device, world)
    ds_config = load(path, given.get("set", []))
    options = arguments.options(given, run_defaults(ds_config, arguments.run_flags()))
    output = options.output or Path("runs") / f"{path.stem}-{_data_name(options)}"
    _judge_early(options, ds_config, path, world, device, output)
    if options.plan:
        return _plan(options, ds_config, path, world, device, output, console)
    console.say(f"不复读: {world.size} process{'es' if world.size > 1 else ''} on {device.summary}")
    why = "" if "deepspeed_config" in given else _why(device, world)
    console.say(f"configuration: {os.path.relpath(path)}{why}")
    console.say(f"run: {output} (log: {output}/logs/rank0.log)")
    stop.limit(options.time_limit)
    set_threads(world, device.kind)
    if device.kind == "cpu":
        keep_freed_memory()
    console.take_over(output / "logs" / f"rank{world.rank}.log")
    lock = RunLock(output)  # held until this process ends
    stop.when_asked.append(lock.ending)
    folder = Path(join(world, device.kind, lambda: str(_prepare(options, device, console)),
                       enter=lambda: lock.acquire(console.say), watchdog=watchdog))
    check_visible(str(folder), folder.is_dir())
    corpus = Corpus.open(folder, verify="hash" if world.rank == 0 else "size")
    config = _model_config(options, corpus)
    rows = corpus.split("train").num_rows(options.max_seq_len)
    if rows < 1:
        tokens = corpus.manifest.splits["train"].tokens
        raise UserError(f"{folder}: {tokens:,} training tokens are less than one row of {options.max_seq_len}: give "
                        "more text or a smaller --max_seq_len")
    facts = _facts(options, world, output, rows, config)
    resolved = resolve(ds_config, facts, device, source=str(path))

    def of_length(steps: int) -> Resolved:
        return resolve(ds_config, replace(facts, max_steps=steps), device, source=str(path))

    return _train(options, output, config, resolved, corpus, world, device, console, stop, watchdog, of_length)


def _default_config(device: Device, world: World) -> Path:
    if device.kind == "cpu":
        return CONFIGS / "cpu_x2.json"
    return CONFIGS / ("t4x2.json" if world.size > 1 or device.count > 1 else "t4x1.json")


def _why(device: Device, world: World) -> str:
    found = "no CUDA GPU here" if device.kind == "cpu" else f"{world.size} process(es) on {device.count} CUDA GPU(s)"
    return f" ({found}; --deepspeed_config chooses another)"


def _data_name(options: Options) -> str:
    if not options.data:
        return "sample"
    name = options.data[0].resolve().name
    for suffix in (".gz", ".zst", ".jsonl"):
        name = name.removesuffix(suffix)
    return name


def _facts(options: Options, world: World, output: Path, rows: int, config: ModelConfig | None) -> RunFacts:
    shape = config or ModelConfig(**options.model)
    budget = options.budget is not None
    return RunFacts(world_size=world.size, rows=rows, epochs=options.epochs,
                    max_steps=budgets.PROVISIONAL_STEPS if budget else options.max_steps, budget=budget, output=output,
                    num_experts=shape.num_experts, ep_size=shape.ep_size, use_moe=shape.use_moe)


def _judge_early(options: Options, ds_config: dict[str, Any], path: Path, world: World, device: Device,
                 output: Path) -> None:
    """Find every contradiction before text is tokenised or processes join."""
    arguments.model_config(options, vocab_size=_vocab_size(options), begin_id=1, end_id=2, pad_id=0)
    if not options.plan:
        resolve(ds_config, _facts(options, world, output, ROWS_UNKNOWN, None), device, source=str(path))
    if any(data.is_dir() and data.resolve() == output.resolve() for data in options.data):
        raise UserError(f"--output {output} is the folder of the corpus: give the run another one, such as runs/NAME")
    for data in options.data:
        if not data.exists():
            raise UserError(f"--data {data}: there is no such file or folder")
    if options.tokenizer and any(data.is_dir() for data in options.data):
        raise UserError("--tokenizer goes with .jsonl data; a prepared folder has its own")
    for name in CLEANING:
        if getattr(options, name) and any(data.is_dir() for data in options.data):
            raise UserError(f"--{name} goes with .jsonl data; a prepared folder was cleaned by prepare.py --{name}")
    if len(options.data) > 1 and any(data.is_dir() for data in options.data):
        raise UserError("--data takes one prepared folder, or .jsonl files, not both")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder")
    checkpoint.find(output, options.resume)


def _prepare(options: Options, device: Device, console: Console) -> Path:
    """The folder of the prepared corpus, made from .jsonl or from the sample corpus if need be; rank 0 only."""
    inputs = list(options.data)
    if len(inputs) == 1 and inputs[0].is_dir():
        return inputs[0]
    if not inputs:
        inputs = [sample_corpus(device, console)]
    cleaning = {name: getattr(options, name) for name in CLEANING if getattr(options, name)}
    settings = {"tokenizer": options.tokenizer, "vocab_size": _vocab_size(options), **cleaning}
    key = fingerprint(inputs, **settings)[:12]
    folder = DATA_FOLDER / f"{_data_name(options)}-{key}"
    if not (folder / "manifest.json").is_file():
        console.say(f"preparing {', '.join(str(path) for path in inputs)} -> {folder}")
    manifest = prepare(inputs, folder, progress=console.stream, **settings)
    train, val = manifest.splits["train"], manifest.splits["val"]
    console.say(f"corpus: {folder}: {train.documents:,} documents, {train.tokens:,} tokens to train on; "
                f"{val.documents:,} documents, {val.tokens:,} tokens to validate")
    return folder


def _vocab_size(options: Options) -> int:
    """The stories have 805 characters; with 6,400 entries names melt into clauses and could not be copied."""
    return options.vocab_size or (6400 if options.data or options.plan_rows else 2000)


def sample_corpus(device: Device, console: Console) -> Path:
    """The stories that a first run learns from, written once."""
    count, hamlet = SAMPLE_STORIES[device.kind]
    path = DATA_FOLDER / f"sample-{'hamlet' if hamlet else 'village'}-{count}.jsonl"
    if not path.is_file():
        console.say(f"no --data given: writing {count:,} sample stories to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sample_corpus(path, count, hamlet=hamlet)
    return path


def _model_config(options: Options, corpus: Corpus) -> ModelConfig:
    manifest = corpus.manifest
    return arguments.model_config(options, vocab_size=manifest.vocab_size, begin_id=manifest.begin_id,
                                  end_id=manifest.end_id, pad_id=manifest.pad_id)


def _plan(options: Options, ds_config: dict[str, Any], path: Path, world: World, device: Device, output: Path,
          console: Console) -> int:
    """`--plan`: needs no launcher, so the number of processes is the one that the configuration is made for."""
    from training.plan import PLANNED_T4X2, plan_lines

    processes = world.size if world.size > 1 else _planned_processes(path)
    if device.kind == "cpu" and ds_config.get("fp16", {}).get("enabled"):
        device = PLANNED_T4X2
    planned = World(0, processes, 0, processes)
    if options.plan_rows is not None:
        vocab, rows = _vocab_size(options), options.plan_rows
        config = arguments.model_config(options, vocab_size=vocab, begin_id=1, end_id=2, pad_id=0)
    else:
        corpus = Corpus.open(_prepare(options, device, console), verify="size")
        config, rows = _model_config(options, corpus), corpus.split("train").num_rows(options.max_seq_len)
    facts = _facts(options, planned, output, max(rows, 1), config)
    resolved = resolve(ds_config, facts, device, source=str(path))
    for line in plan_lines(config, resolved, facts, device, seq_len=options.max_seq_len,
                           utilisation=options.plan_utilisation):
        console.say(line)
    return 0


def _planned_processes(path: Path) -> int:
    """`..._x1`, `t4x1`: the file's name says for how many it is; two where it says nothing."""
    return 1 if "x1" in path.stem else 2


def _train(options: Options, output: Path, config: ModelConfig, resolved: Resolved, corpus: Corpus, world: World,
           device: Device, console: Console, stop: StopRequest, watchdog: Watchdog,
           of_length: Callable[[int], Resolved]) -> int:
    from training.engine import build_engine
    from training.loop import Setup, Trainer

    subject = Subject(options, output, config, resolved, corpus, world, device, console, stop.seconds_left)
    if options.preflight:
        subject, length = _fill_budget(subject, of_length, stop)
        _announce(options, config, subject.resolved, corpus, output, console, world)
        return 1 if preflight(subject, length and length.cost) else 0
    found, warnings = told(world, lambda: checkpoint.choose(output, options.resume))
    for warning in warnings:
        console.say(f"WARNING: {warning}")
    if found and options.budget is not None:
        resolved = of_length(checkpoint.read_state(found).total_steps)
    identity = _identity(options, config, resolved, corpus)
    state = _state(found, identity, resolved, options, console)
    if why := _nothing_left(state, resolved, options):
        console.say(f"{output} {why}")
        return 0
    room, length = told(world, lambda: _room(options, config, resolved, output)), None
    if not found:
        subject, length = _fill_budget(subject, of_length, stop)
        resolved = subject.resolved
        state = _state(None, identity, resolved, options, console)
    _announce(options, config, resolved, corpus, output, console, world)
    console.say(room)
    if options.budget is not None:
        console.say(length.line if length else _outlook(state, options.budget, stop))
    if not found and not options.skip_preflight:
        _check_first(subject, length and length.cost)
    console.say("starting DeepSpeed (some seconds)")
    engine = build_engine(config, resolved.config, seed=options.seed, rank=world.rank)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_path))
    trainer = Trainer(Setup(options, output, config, resolved, corpus, tokenizer, world, device, console, stop,
                            watchdog), engine, state)
    if found:
        trainer.resume(found)
        console.say(f"continuing from {found} (step {state.step:,})")
    stop.enter_loop()
    status = _fit(trainer)
    stop.leave_loop()
    engine.destroy()
    return status


def _fit(trainer: Any) -> int:
    """Exit status: 1 if the numbers went wrong, 0 however else the run ended."""
    from training.divergence import Diverged

    status = 0
    try:
        reason = trainer.fit()
    except Diverged as error:
        trainer.console.say(f"train.py: stopped: {error}")
        reason, status = f"diverged: {error}", 1
    finally:
        trainer.close()
    if trainer.world.rank == 0:
        _sum_up(trainer, reason)
    return status


def _fill_budget(subject: Subject, of_length: Callable[[int], Resolved],
                 stop: StopRequest) -> tuple[Subject, budgets.Length | None]:
    """The same run with as many steps as fit --budget, if that is given; collective."""
    if subject.options.budget is None:
        return subject, None
    length = budgets.work_out(subject, subject.options.budget, lambda: stop.running)
    return replace(subject, resolved=of_length(length.steps)), length


def _outlook(state: RunState, budget: float, stop: StopRequest) -> str:
    """Where a run that continues will end; its length stays."""
    return budgets.outlook(budget, state.wall_seconds + stop.running, (state.total_steps or 0) - state.step, state.pace)


def _room(options: Options, config: ModelConfig, resolved: Resolved, output: Path) -> str:
    """What the run takes on the disk, for people; UserError if there is too little of it."""
    existing = disk.size_of(output / "checkpoints") + disk.size_of(output / "model")
    return disk.check_room(output, disk.checkpoint_bytes(config, resolved), disk.model_bytes(config, resolved),
                           options.keep_last, existing)


def _state(found: Path | None, identity: dict[str, Any], resolved: Resolved, options: Options,
           console: Console) -> RunState:
    """Where the run stands, and that it is this run. UserError if it is another one."""
    if found is None:
        return RunState(identity=identity, ds_config=resolved.config, total_steps=resolved.total_steps)
    state = checkpoint.read_state(found)
    check_identity(state, identity, found)
    for line in check_config(state, resolved.config, found, accept=options.accept_changes):
        console.say(f"  differs from {found.name}: {line}")
    state.identity, state.ds_config, state.total_steps = identity, resolved.config, resolved.total_steps
    return state


def _nothing_left(state: RunState, resolved: Resolved, options: Options) -> str | None:
    """Why a run need not be continued."""
    if state.step >= resolved.total_steps and state.finished:
        return f"has finished its {state.step:,} steps already: --output starts another run"
    if why := state.lost_patience(options.patience):
        return f"has stopped already: {why}; a larger --patience continues it"
    return None


def _check_first(subject: Subject, cost: Cost | None) -> None:
    """No hours for a run that a check found to be wrong."""
    if failed := preflight(subject, cost):
        raise UserError(f"preflight failed in {', '.join(failed)} (above, and in {subject.output}/preflight.json): "
                        "mend that, or go on anyway with --skip_preflight")


def _identity(options: Options, config: ModelConfig, resolved: Resolved, corpus: Corpus) -> dict[str, Any]:
    """What must not change between the sessions of one run. The DeepSpeed JSON is judged apart, and the number of
    processes and where the experts are may change.
    """
    shape = {f"model.{name}": value for name, value in asdict(config).items()
             if name not in ("max_position_embeddings", "ep_size")}
    return shape | {"corpus": corpus.manifest.fingerprint, "tokenizer": corpus.manifest.tokenizer_sha256,
                    "train_batch_size": resolved.train_batch, "max_seq_len": options.max_seq_len, "seed": options.seed}


def _announce(options: Options, config: ModelConfig, resolved: Resolved, corpus: Corpus, output: Path,
              console: Console, world: World) -> None:
    """What was chosen, a line a fact, and the resolved JSON beside it."""
    total, active = count_parameters(config)
    kind = (f"{config.num_experts} experts, {config.num_experts_per_tok} a token" if config.use_moe else "dense")
    console.say(f"model: {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active a token ({kind}, hidden "
                f"{config.hidden_size}, {config.num_hidden_layers} layers, vocabulary {config.vocab_size:,})")
    for note in resolved.notes:
        console.say(f"  {note}")
    console.say(f"training: {resolved.total_steps:,} steps of {resolved.train_batch} x {options.max_seq_len} tokens, "
                f"{resolved.precision}, ZeRO-{resolved.zero_stage}, {resolved.optimizer_name}")
    console.say(f"loss to beat: {loss_to_beat(corpus.manifest)}")
    if world.rank == 0 and not options.preflight:
        disk.write_text(output / "ds_config.json", json.dumps(resolved.config, indent=2) + "\n", console.say)
        flags = {name: value for name, value in asdict(options).items() if name != "model"}
        record = {"command": sys.argv, "flags": flags, "model": asdict(config), "corpus": str(corpus.folder)}
        text = json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n"
        disk.write_text(output / "run.json", text, console.say)


def _sum_up(trainer: Any, reason: str) -> None:
    setup, state, last = trainer.setup, trainer.state, trainer.last_evaluation
    corpus = setup.corpus.manifest
    tokens = state.step * setup.tokens_per_step
    summary = {
        "reason": reason, "steps": state.step, "total_steps": trainer.total_steps, "tokens": tokens,
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(tokens / state.seconds) if state.seconds else None,
        "val_loss": last.loss if last else None, "val_bits_per_byte": last.bits_per_byte if last else None,
        "best_val_loss": state.best_loss, "best_step": state.best_step,
        "token_entropy": corpus.entropy_nats, "skipped_steps": int(trainer.engine.skipped_steps),
        "alarms": state.alarms,
    }
    console = setup.console
    disk.write_text(setup.output / "summary.json", json.dumps(summary, indent=2) + "\n", console.say)
    console.say(f"{reason}: {state.step:,} of {trainer.total_steps:,} steps, {tokens / 1e6:.2f} M tokens in "
                f"{human_time(state.seconds)} of training")
    if state.best_loss is not None:
        console.say(f"best validation loss {state.best_loss:.3f} at step {state.best_step:,}, beside "
                    f"{corpus.entropy_nats:.3f} for token frequencies alone")
    console.say(f"model: {setup.output}/model   curves: tensorboard --logdir {setup.output}/tensorboard   "
                f"verdict: python diagnose.py --checkpoint {setup.output}")
    if not state.finished:
        console.say("the same command continues the run")


"""From flags to a finished run: choose, prepare, resolve, build, continue, train, sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.console import Console
from common.errors import UserError
from common.hardware import Device, detect
from corpus.pipeline import prepare
from corpus.settings import PreparationSettings, fingerprint
from corpus.shards import Corpus
from model import ModelConfig
from sample_stories import write_sample_corpus
from training.checkpointing import checkpoint
from training.checkpointing.run_state import RunState, check_config, check_identity
from training.config import command_line
from training.config.command_line import Options
from training.config.resolve import Resolved, RunFacts, load, resolve, run_defaults
from training.context import RunContext
from training.monitoring.announce import announce, sum_up
from training.planning import budget as budgets
from training.planning.disk_space import check_disk_space
from training.preflight.cost_checks import Cost
from training.preflight.runner import preflight
from training.processes.cpu_tuning import keep_freed_memory, share_cores, use_huge_pages
from training.processes.exit import guarded
from training.processes.lock import RunLock
from training.processes.process_group import World, broadcast_from_rank0
from training.processes.rendezvous import check_corpus_visible, check_output_shared, form_process_group
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
DATA_FOLDER = Path("data")
CLEANING = ("dedup", "repetition")  # flags that prepare.py has too
# Stories, and whether of the hamlet (fewer people and plots) rather than the village: minutes on either device
SAMPLE_STORIES = {"cpu": (44_000, True), "cuda": (200_000, False)}
ROWS_UNKNOWN = 10**9  # stands in until the corpus is prepared, to judge the JSON before hours of tokenising


def main(argv: Sequence[str], description: str) -> int:
    """Exit status of train.py: 0 for a run that ended as it should, 2 for wrong input, 1 for a fault,
    numbers that went wrong or an end that could not be saved.
    """
    world = World.from_environment()
    console = Console(world.rank)
    stop = StopRequest(console)
    watchdog = Watchdog(world.rank, world.size, console, stop)
    with stop.listening():
        watchdog.watch_launcher()
        return guarded(lambda: _run(command_line.parse(argv, description), world, console, stop, watchdog), watchdog)


def _run(given: dict[str, Any], world: World, console: Console, stop: StopRequest, watchdog: Watchdog) -> int:
    device = detect()
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for a GPU, and warn
    path = given.get("deepspeed_config") or _default_config(device, world)
    ds_config = load(path, given.get("set", []))
    options = command_line.options(given, run_defaults(ds_config, command_line.run_flags(), source=path))
    output = options.output or Path("runs") / f"{path.stem}-{_data_name(options)}"
    _judge_early(options, ds_config, path, world, device, output)
    if options.plan:
        return _plan(options, ds_config, path, world, device, output, console)
    console.say(f"不复读: {world.size} process{'es' if world.size > 1 else ''} on {device.summary}")
    why = "" if "deepspeed_config" in given else _why(device, world)
    console.say(f"configuration: {os.path.relpath(path)}{why}")
    console.say(f"run: {output} (log: {output}/logs/rank0.log)")
    stop.set_time_limit(options.time_limit)
    if device.kind == "cpu":
        share_cores(world.local_size)
        use_huge_pages()
    console.redirect_libraries(output / "logs" / f"rank{world.rank}.log")
    lock = RunLock(output)  # held until this process ends
    stop.callbacks.append(lock.mark_ending)
    folder = Path(
        form_process_group(
            world,
            device.kind,
            lambda: str(_prepare(options, device, console)),
            before_listening=lambda: lock.acquire(console.say),
            watchdog=watchdog,
        )
    )
    if device.kind == "cpu":
        keep_freed_memory()
    check_corpus_visible(folder)
    check_output_shared(output, lock.path.is_file())
    corpus = Corpus.open(folder, verify="hash" if world.rank == 0 else "size")
    config = _model_config(options, corpus)
    rows = corpus.split("train").num_rows(options.max_seq_len)
    if rows < 1:
        tokens = corpus.manifest.splits["train"].tokens
        raise UserError(
            f"{folder}: {tokens:,} training tokens are less than one row of {options.max_seq_len}: give "
            "more text or a smaller --max_seq_len"
        )
    facts = _facts(options, world, output, rows, config)
    resolved = resolve(ds_config, facts, device, source=str(path))

    def of_length(steps: int) -> Resolved:
        return resolve(ds_config, replace(facts, max_steps=steps), device, source=str(path))

    context = RunContext(options, output, config, resolved, corpus, world, device, console, stop, watchdog)
    return _preflight(context, of_length) if options.preflight else _train(context, of_length)


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
    return RunFacts(
        world_size=world.size,
        rows=rows,
        epochs=options.epochs,
        max_steps=budgets.PROVISIONAL_STEPS if budget else options.max_steps,
        budget=budget,
        output=output,
        num_experts=shape.num_experts,
        ep_size=shape.ep_size,
        use_moe=shape.use_moe,
    )


def _judge_early(
    options: Options, ds_config: dict[str, Any], path: Path, world: World, device: Device, output: Path
) -> None:
    """Find every contradiction before text is tokenised or processes join."""
    command_line.model_config(options, vocab_size=_vocab_size(options), begin_id=1, end_id=2, pad_id=0)
    if not options.plan:
        resolve(ds_config, _facts(options, world, output, ROWS_UNKNOWN, None), device, source=str(path))
    if options.preflight and options.skip_preflight:
        raise UserError("--preflight checks the run and --skip_preflight leaves that out: give one of the two")
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
    settings = PreparationSettings(tokenizer=options.tokenizer, vocab_size=_vocab_size(options), **cleaning)
    key = fingerprint(inputs, settings)[:12]
    folder = DATA_FOLDER / f"{_data_name(options)}-{key}"
    if not (folder / "manifest.json").is_file():
        console.say(f"preparing {', '.join(str(path) for path in inputs)} -> {folder}")
    manifest = prepare(inputs, folder, settings, progress=console.stream)
    train, val = manifest.splits["train"], manifest.splits["val"]
    console.say(
        f"corpus: {folder}: {train.documents:,} documents, {train.tokens:,} tokens to train on; "
        f"{val.documents:,} documents, {val.tokens:,} tokens to validate"
    )
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
    return command_line.model_config(
        options,
        vocab_size=manifest.vocab_size,
        begin_id=manifest.bos_id,
        end_id=manifest.eos_id,
        pad_id=manifest.pad_id,
    )


def _plan(
    options: Options,
    ds_config: dict[str, Any],
    path: Path,
    world: World,
    device: Device,
    output: Path,
    console: Console,
) -> int:
    """`--plan`: needs no launcher, so the number of processes is the one that the configuration is made for."""
    from training.planning.plan import PLANNED_T4X2, plan_lines

    processes = world.size if world.size > 1 else _planned_processes(path)
    if device.kind == "cpu" and ds_config.get("fp16", {}).get("enabled"):
        device = PLANNED_T4X2
    planned = World(0, processes, 0, processes)
    if options.plan_rows is not None:
        vocab, rows = _vocab_size(options), options.plan_rows
        config = command_line.model_config(options, vocab_size=vocab, begin_id=1, end_id=2, pad_id=0)
    else:
        corpus = Corpus.open(_prepare(options, device, console), verify="size")
        config, rows = _model_config(options, corpus), corpus.split("train").num_rows(options.max_seq_len)
    facts = _facts(options, planned, output, max(rows, 1), config)
    resolved = resolve(ds_config, facts, device, source=str(path))
    for line in plan_lines(
        config, resolved, facts, device, seq_len=options.max_seq_len, utilisation=options.plan_utilisation
    ):
        console.say(line)
    return 0


def _planned_processes(path: Path) -> int:
    """`..._x1`, `t4x1`: the file's name says for how many it is; two where it says nothing."""
    return 1 if "x1" in path.stem else 2


def _preflight(context: RunContext, of_length: Callable[[int], Resolved]) -> int:
    """`--preflight`: exit status 1 if a check failed."""
    context, length = _fill_budget(context, of_length)
    announce(context)
    return 1 if preflight(context, length and length.cost) else 0


def _train(context: RunContext, of_length: Callable[[int], Resolved]) -> int:
    """Start or continue the run, and see it to its end; the exit status."""
    from training.engine.build import build_engine
    from training.trainer import Trainer

    options, console = context.options, context.console
    found, warnings = broadcast_from_rank0(context.world, lambda: checkpoint.choose(context.output, options.resume))
    for warning in warnings:
        console.say(f"WARNING: {warning}")
    if found and options.budget is not None:
        context = replace(context, resolved=of_length(checkpoint.read_state(found).total_steps))
    state, differences = _state(found, context)
    if found and (why := _nothing_left(state, context)):
        console.say(f"{context.output} {why}")
        return 0
    disk_space = broadcast_from_rank0(
        context.world, lambda: check_disk_space(context.output, context.config, context.resolved, options.keep_last)
    )
    length = None
    if not found:
        context, length = _fill_budget(context, of_length)
        state, _ = _state(None, context)
    announce(context)
    for line in differences:
        console.say(f"  differs from {found}: {line}")
    console.say(disk_space)
    if options.budget is not None:
        console.say(length.line if length else _outlook(state, context))
    if not found and not options.skip_preflight:
        _check_first(context, length and length.cost)
    console.say("starting DeepSpeed (some seconds)")
    engine = build_engine(context.config, context.resolved.config, seed=options.seed, rank=context.world.rank)
    trainer = Trainer(context, engine, state)
    if found:
        trainer.resume(found)
        console.say(f"continuing from {found} (step {state.step:,})")
    context.stop.enter_loop()
    status = _fit(trainer)
    context.stop.leave_loop()
    engine.destroy()
    return status


def _fit(trainer: Any) -> int:
    """Exit status: 1 if the numbers went wrong or the end could not be saved, 0 however else the run ended."""
    from training.rollback import Diverged

    try:
        reason = trainer.fit()
        status = 0 if trainer.kept else 1
    except Diverged as error:
        trainer.console.say(f"train.py: stopped: {error}")
        reason, status = f"diverged: {error}", 1
    finally:
        trainer.close()
    if trainer.world.rank == 0:
        sum_up(
            trainer.context,
            trainer.state,
            reason,
            evaluation=trainer.last_evaluation,
            skipped_steps=int(trainer.engine.skipped_steps),
        )
    return status


def _fill_budget(context: RunContext, of_length: Callable[[int], Resolved]) -> tuple[RunContext, budgets.Length | None]:
    """The same run with as many steps as fit --budget, if that is given; collective."""
    if context.options.budget is None:
        return context, None
    length = budgets.work_out(context, context.options.budget, lambda: context.stop.elapsed)
    return replace(context, resolved=of_length(length.steps)), length


def _outlook(state: RunState, context: RunContext) -> str:
    """Where a run that continues will end; its length stays."""
    spent, steps_left = state.wall_seconds + context.stop.elapsed, (state.total_steps or 0) - state.step
    return budgets.outlook(context.options.budget or 0.0, spent, steps_left, state.pace)


def _state(found: Path | None, context: RunContext) -> tuple[RunState, list[str]]:
    """Where the run stands, and in what it differs from then; UserError if it is another run."""
    identity, resolved = _identity(context), context.resolved
    if found is None:
        return RunState(identity=identity, ds_config=resolved.config, total_steps=resolved.total_steps), []
    state = checkpoint.read_state(found)
    check_identity(state, identity, found, at_once=resolved.micro_batch * context.world.size)
    differences = check_config(state, resolved.config, found, accept=context.options.accept_changes)
    state.identity, state.ds_config, state.total_steps = identity, resolved.config, resolved.total_steps
    return state, differences


def _nothing_left(state: RunState, context: RunContext) -> str | None:
    """Why a run need not be continued."""
    if state.step >= context.resolved.total_steps and state.finished:
        return f"has finished its {state.step:,} steps already: --output starts another run"
    if why := state.early_stopping(context.options.patience):
        return f"has stopped already: {why}; a larger --patience continues it"
    return None


def _check_first(context: RunContext, cost: Cost | None) -> None:
    """No hours for a run that a check found to be wrong."""
    if failed := preflight(context, cost):
        raise UserError(
            f"preflight failed in {', '.join(failed)} (above, and in {context.output}/preflight.json): "
            "fix that, or go on anyway with --skip_preflight"
        )


def _identity(context: RunContext) -> dict[str, Any]:
    """What must not change between the sessions of one run. The DeepSpeed JSON is judged apart, and the number of
    processes and where the experts are may change.
    """
    manifest, options = context.corpus.manifest, context.options
    shape = {
        f"model.{name}": value
        for name, value in asdict(context.config).items()
        if name not in ("max_position_embeddings", "ep_size")
    }
    return shape | {
        "corpus": manifest.fingerprint,
        "tokenizer": manifest.tokenizer_sha256,
        "train_batch_size": context.resolved.train_batch,
        "max_seq_len": options.max_seq_len,
        "seed": options.seed,
    }

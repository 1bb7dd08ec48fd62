"""From chosen flags to a finished run: prepare, resolve, build, continue, train, sum up."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from common.console import Console
from common.errors import UserError
from common.uncompiled import leave_compiler_out
from corpus.shards import Corpus
from training.checkpointing import checkpoint
from training.checkpointing.earlier_runs import set_aside_earlier_run
from training.config import defaults
from training.config.resolve import Draft
from training.context import RunContext
from training.data import corpus_model, open_corpus, packing_line, prepare_data, training_rows, validation_remark
from training.engine.kernels import with_kernels
from training.monitoring.run_summary import announce, sum_up
from training.planning.budget import outlook, work_out
from training.planning.disk_space import check_disk_space
from training.planning.micro_batch import Memory
from training.preflight.cost_checks import Cost
from training.preflight.runner import preflight
from training.processes.agreement import check_agreement, code_facts, file_digest
from training.processes.device_settings import (
    keep_freed_memory,
    reproducible_kernels,
    share_cores,
    use_huge_pages,
)
from training.processes.exit import guarded
from training.processes.lock import RunLock
from training.processes.process_group import World, broadcast_from_rank0
from training.processes.rendezvous import check_output_shared, form_process_group
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog
from training.resume import continue_state, new_state, nothing_left
from training.start import Chosen, Start, start

if TYPE_CHECKING:
    from training.trainer import Trainer


def main(argv: Sequence[str], description: str) -> int:
    """Return the exit status of train.py.

    0 is a run that ended as it should, 2 wrong input, 1 a fault, divergence, or an end that could not be saved.
    """
    begun = start(argv, description)
    return begun if isinstance(begun, int) else run(begun)


def run(begun: Start) -> int:
    """Do what was asked for; return the exit status."""
    stop = StopRequest(begun.console)
    watchdog = Watchdog(begun.world.rank, begun.world.size, begun.console, stop)
    with stop.listening():
        watchdog.watch_launcher()
        return guarded(lambda: _run(begun, stop, watchdog), watchdog)


def _run(begun: Start, stop: StopRequest, watchdog: Watchdog) -> int:
    if isinstance(begun.chosen, UserError):
        raise begun.chosen
    chosen, draft, world, console = begun.chosen, begun.draft, begun.world, begun.console
    options, output, device = chosen.options, chosen.output, chosen.device
    if options.plan:
        return _plan(chosen, world, console)
    if draft is None:
        return _tune(chosen, world, console)
    corpus = _join_and_prepare(chosen, world, console, stop, watchdog)
    rows, model = training_rows(corpus, options.max_seq_len), corpus_model(options, corpus)
    for remark in (packing_line(corpus, options.max_seq_len), validation_remark(corpus, options.max_seq_len)):
        if remark:
            console.say(remark)
    context = RunContext(options, output, model, draft.unscheduled(), corpus, world, device, console, stop, watchdog)
    status = _preflight(context, draft, rows) if options.preflight else _train(context, draft, rows)
    dist.destroy_process_group()  # NCCL warns, and may hang at exit, where a process just leaves it
    return status


def _plan(chosen: Chosen, world: World, console: Console) -> int:
    """Print what `--plan` says; it needs no launcher, so the processes are those that the file is made for."""
    from training.planning.plan import PLANNED_T4X2, Plan, tokens_a_second

    leave_compiler_out()  # a third of the time
    options, device, fp16 = chosen.options, chosen.device, chosen.ds_config.get("fp16")
    processes = defaults.planned_processes(chosen.config_path, world.size)
    for_t4 = chosen.config_path.stem.startswith("t4") or (isinstance(fp16, dict) and fp16.get("enabled") is True)
    if device.kind == "cpu" and for_t4:
        device = PLANNED_T4X2
    draft = chosen.checked(processes, device)
    if options.plan_rows is not None:
        model, rows = chosen.model, options.plan_rows
    else:
        corpus = Corpus.open(prepare_data(options, chosen.device.kind, console), verify="size")
        model, rows = corpus_model(options, corpus), training_rows(corpus, options.max_seq_len)
    memory = Memory(model, device, processes, options.max_seq_len)
    steps = None
    if options.budget is not None:
        speed = tokens_a_second(memory, draft.precision, options.plan_utilisation)
        if speed is None:
            raise UserError(
                f"--plan --budget: how fast {device.name} is can only be measured; give --max_steps instead"
            )
        steps = max(1, int(options.budget * speed / (draft.train_batch * options.max_seq_len)))
    console.say(f"config    {os.path.relpath(chosen.config_path)}{chosen.why}")
    resolved, from_scratch = draft.resolve(rows, steps), options.init_from is None
    plan = Plan(resolved, rows, memory, options.kernels, options.budget, from_scratch)
    for line in plan.lines(options.plan_utilisation):
        console.say(line)
    return 0


def _tune(chosen: Chosen, world: World, console: Console) -> int:
    """Measure variations of the configuration in processes of their own, and write the fastest."""
    from training.planning.tune import Tuner, tune

    if world.size > world.local_size:
        raise UserError("--tune measures one machine: start it on each kind of machine alone, python train.py --tune")
    if world.rank > 0:
        return 0  # the trials have processes of their own
    options, device = chosen.options, chosen.device
    processes = defaults.planned_processes(chosen.config_path, world.size)
    if device.kind == "cuda":
        processes = min(processes, device.count)
    chosen.checked(processes)  # before text is prepared
    console.say(f"不复读: tuning for {processes} process{'es' if processes > 1 else ''} on {device.summary}")
    corpus = Corpus.open(prepare_data(options, device.kind, console), verify="size")
    training_rows(corpus, options.max_seq_len)
    tuner = Tuner(
        chosen.ds_config,
        lambda config: replace(chosen, ds_config=config).checked(processes),
        Memory(corpus_model(options, corpus), device, processes, options.max_seq_len),
        corpus.folder,
        options,
        console.say,
    )
    return tune(tuner, chosen.config_path, chosen.output, defaults.CONFIGS)


def _join_and_prepare(chosen: Chosen, world: World, console: Console, stop: StopRequest, watchdog: Watchdog) -> Corpus:
    """Bring the processes together, which agree on what is to be run; rank 0 locks the run and prepares its corpus."""
    options, output, device = chosen.options, chosen.output, chosen.device
    stop.set_time_limit(options.time_limit)
    if device.kind == "cpu":
        share_cores(world.local_size)
        use_huge_pages()
        leave_compiler_out()
    else:
        reproducible_kernels(chosen.model)
    console.redirect_libraries(output / "logs" / f"rank{world.rank}.log")
    # seconds, beside the preparation of the text, which other processes do
    threading.Thread(target=import_module, args=("deepspeed",)).start()
    lock = RunLock(output)  # held until this process ends
    stop.when_ending = lock.mark_ending
    # two flags are compared by what they say, the JSON
    flags = {name: value for name, value in asdict(options).items() if name not in ("deepspeed_config", "set")}
    prepared = form_process_group(
        world,
        device.kind,
        lambda: json.dumps([str(prepare_data(options, device.kind, console)), lock.token]),
        facts={"processes": world.size, **code_facts(), "JSON": chosen.ds_config, "flags": flags},
        before_listening=lambda: lock.acquire(console.say),
        watchdog=watchdog,
    )
    name, token = json.loads(prepared)
    folder = Path(name)
    if device.kind == "cpu":
        keep_freed_memory()
    if world.rank > 0:  # rank 0 would lose its lock by reading the file
        check_output_shared(output, token)
    digests = {name: file_digest(folder / name) for name in ("manifest.json", "tokenizer.json")}
    check_agreement(world, digests, f"put the first machine's {folder} at the same path on the others")
    return open_corpus(options, folder, world)


def _preflight(context: RunContext, draft: Draft, rows: int) -> int:
    """Check the run and do no more; return 1 if a check failed."""
    context, cost = _with_length(with_kernels(context, None), draft, rows)
    announce(context)
    return 1 if preflight(context, cost) else 0


def _train(context: RunContext, draft: Draft, rows: int) -> int:
    """Start or continue the run, and see it to its end; return the exit status."""
    from training.engine.build import build_engine
    from training.engine.trackers import continue_trackers
    from training.trainer import Trainer

    options, console, world, stop = context.options, context.console, context.world, context.stop
    found, warnings = broadcast_from_rank0(lambda: checkpoint.choose(context.output, options.resume))
    for warning in warnings:
        console.say(f"WARNING: {warning}")
    cost: Cost | None = None
    differences: list[str] = []
    if found:
        state = checkpoint.read_state(found)
        steps = None if options.budget is None else state.total_steps  # a length that was measured stays
        context = replace(context, resolved=draft.resolve(rows, steps))
        differences = continue_state(state, context, found)
        if why := nothing_left(state, options.patience):
            console.say(f"{context.output} {why}")
            return 0
        context = with_kernels(context, state)
        disk_space = _disk_space(context)
    else:
        disk_space = _disk_space(context)
        context, cost = _with_length(with_kernels(context, None), draft, rows)
        state = new_state(context)
    resolved = {"resolved JSON": context.resolved.config, "total steps": context.resolved.total_steps}
    check_agreement(world, resolved, "start all ranks alike, on machines of one kind")
    if moved := broadcast_from_rank0(lambda: set_aside_earlier_run(context.output)):
        console.say(moved)
    announce(context)
    for line in differences:
        console.say(f"  differs from {found}: {line}")
    console.say(disk_space)
    if found and options.budget is not None:
        console.say(outlook(state, options.budget, stop.elapsed))
    if not found and not options.skip_preflight and (failed := preflight(context, cost)):
        raise UserError(
            f"preflight failed in {', '.join(failed)} (above, and in {context.output}/preflight.json): "
            "fix that, or go on anyway with --skip_preflight"
        )
    console.say("starting DeepSpeed (some seconds)")
    init = {"seed": options.seed, "rank": world.rank, "init_from": options.init_from, "kernels": context.kernels}
    engine = build_engine(context.config, continue_trackers(context.resolved.config, context.output, state), **init)
    trainer = Trainer(context, engine, state)
    if found:
        trainer.resume(found)
        console.say(f"continuing from {found} (step {state.step:,})")
    stop.enter_loop()
    status = _fit(trainer)
    stop.leave_loop()
    engine.destroy()
    return status


def _disk_space(context: RunContext) -> str:
    """Return what the run takes on the disk; raise UserError if there is too little. Collective."""
    output, keep_last = context.output, context.options.keep_last
    return broadcast_from_rank0(lambda: check_disk_space(output, context.config, context.resolved, keep_last))


def _with_length(context: RunContext, draft: Draft, rows: int) -> tuple[RunContext, Cost | None]:
    """Resolve the length of a new run, and return what a step costs where --budget has measured it; collective."""
    budget = context.options.budget
    steps, cost = work_out(context, budget) if budget is not None else (None, None)
    return replace(context, resolved=draft.resolve(rows, steps)), cost


def _fit(trainer: Trainer) -> int:
    """Return 1 if the loss diverged or the end could not be saved, 0 however else the run ended."""
    from training.rollback import Diverged

    try:
        reason, status = trainer.fit(), int(not trainer.kept)
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
            evaluation=trainer.evaluator.last,
            skipped_steps=int(trainer.engine.skipped_steps),
        )
    return status

"""A rank of a toy run under the watchdog: `worker_watchdog.py FAULT FOLDER`; started by test_watchdog.py.

FAULT is NAME@RANKS, done by these ranks in step 5: `raise`, `refuse` (a UserError), `stuck` (the main thread sleeps),
or `none`; or before the ranks meet: `early` (a UserError), `early-raise`, `differ` (in its facts). `prepare` and
`set_up` wait before the ranks meet, or after that, for as long as FOLDER/hold is there.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from common.console import Console
from common.errors import UserError
from training.processes.exit import guarded
from training.processes.lock import RunLock
from training.processes.process_group import World, any_rank
from training.processes.rendezvous import form_process_group
from training.processes.stopping import StopRequest
from training.processes.watchdog import Watchdog

FAULT, _, FAULTY = sys.argv[1].partition("@")
FOLDER = Path(sys.argv[2])


def hold(rank: int) -> None:
    (FOLDER / f"holding{rank}").touch()
    while (FOLDER / "hold").exists():
        time.sleep(0.02)


def prepare() -> str:
    if FAULT == "prepare":
        try:
            hold(0)
        finally:
            (FOLDER / "cleaned").touch()
    return "ready"


def fault(rank: int) -> None:
    if str(rank) not in FAULTY:
        return
    if FAULT in ("raise", "early-raise"):
        raise ValueError("a planted fault")
    if FAULT in ("refuse", "early"):
        raise UserError("a planted refusal")
    if FAULT == "stuck":
        time.sleep(1000)


def run(world: World, console: Console, stop: StopRequest, watchdog: Watchdog) -> int:
    lock = RunLock(FOLDER)
    stop.when_ending = lock.mark_ending
    console.redirect_libraries(FOLDER / "logs" / f"rank{world.rank}.log")
    if FAULT.startswith("early"):
        fault(world.rank)
    form_process_group(
        world,
        "cpu",
        prepare,
        facts={"faulty": FAULT == "differ" and str(world.rank) in FAULTY},
        before_listening=lambda: lock.acquire(console.say),
        watchdog=watchdog,
    )
    if FAULT == "set_up":
        hold(world.rank)
    stop.enter_loop()
    step, last = 0, int(os.environ.get("LAST_STEP", "100000"))
    while step < last:
        watchdog.progress.tick("training")
        if step == 5:
            fault(world.rank)
        time.sleep(0.01)
        dist.all_reduce(torch.ones(1))
        step += 1
        (FOLDER / f"step{world.rank}").write_text(str(step))
        if any_rank(stop.wanted, torch.device("cpu")):
            break
    watchdog.progress.tick("saving")
    (FOLDER / f"saving{world.rank}").touch()
    time.sleep(float(os.environ.get("SAVE_SECONDS", "0")))
    dist.barrier()
    console.say(f"saved {step}: {stop.reason or watchdog.stop_reason() or 'finished'}")
    stop.leave_loop()
    return 0


def main() -> int:
    world = World.from_environment()
    console = Console(world.rank)
    stop = StopRequest(console)
    watchdog = Watchdog(world.rank, world.size, console, stop)
    with stop.listening():
        watchdog.watch_launcher()
        return guarded(lambda: run(world, console, stop, watchdog), watchdog)


if __name__ == "__main__":
    sys.exit(main())

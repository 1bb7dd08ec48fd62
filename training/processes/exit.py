"""How train.py ends: in order, refused, failed, or because of another rank.

The user gets one line and the shell a status; the traceback, if there is one, goes where the libraries print: into the
run's log.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from common.errors import UserError
from training.processes.process_group import World
from training.processes.rendezvous import NotAdmittedError, release_from, tell_rank0
from training.processes.stopping import NOTHING_LOST, StoppedEarly
from training.processes.watchdog import Watchdog

# Seconds
SETTLE = 0.3  # after which a signal has surely arrived that other processes of the group have had already
AFTER_SIGNAL = 2.0  # to learn whether the launcher asked to stop because another rank has died
AFTER_COLLECTIVE = 12.0  # to learn which rank made a collective fail; enough for one on another machine
AFTER_ERROR = 1.5

_COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket|broken pipe|timed? ?out|store", re.IGNORECASE
)


def guarded(body: Callable[[], int], watchdog: Watchdog) -> int:
    """Run `body` and return the exit status: 0 for an end in order, 2 for wrong input, 1 for a fault.

    Where another rank is to blame, the watchdog says so and ends the process: this does not return then.
    """
    watchdog.release = release_from(World.from_environment())
    try:
        status = body()
    except StoppedEarly as order:
        return _stopped(order, watchdog)
    except UserError as error:
        return _refused(error, watchdog)
    except SystemExit as error:
        watchdog.stop.leave_loop()
        watchdog.leave("failed" if error.code else "", status=2, announced=True)
        raise
    except Exception as error:
        return _failed(error, watchdog)
    watchdog.stop.leave_loop()
    watchdog.leave()
    return status


def _stopped(order: StoppedEarly, watchdog: Watchdog) -> int:
    """End a run that was asked to stop in set-up, unless the launcher asked because a rank has died."""
    watchdog.stop.leave_loop()
    watchdog.wait_for_failure(AFTER_SIGNAL)
    watchdog.console.say(f"{order}: {NOTHING_LOST}")
    watchdog.leave("stopped", reason=str(order), announced=True)
    return 0


def _refused(error: UserError, watchdog: Watchdog) -> int:
    """End with wrong input. Most of it is met by all ranks, so only rank 0 speaks; watchdogs tell it of the rest."""
    stop = watchdog.stop
    if stop.reason is not None and stop.in_set_up:  # a library has wrapped the order to stop
        return _stopped(StoppedEarly(stop.reason), watchdog)
    if watchdog.connected and stop.in_set_up:
        try:
            time.sleep(SETTLE)  # the launcher ends the workers that tokenize, then this process
        except StoppedEarly as order:
            return _stopped(order, watchdog)
    stop.leave_loop()
    # before the ranks have met, each machine has a terminal of its own
    speaks = watchdog.rank == 0 or (not watchdog.connected and os.environ.get("LOCAL_RANK") == "0")
    if speaks:
        watchdog.console.fail(f"train.py: {error}")
    if not (isinstance(error, NotAdmittedError) or _is_said_by_rank0(str(error), watchdog) or speaks):
        watchdog.console.fail(f"train.py: rank {watchdog.rank}: {error}")
    watchdog.leave("failed", status=2, reason=str(error), announced=speaks)
    return 2


def _is_said_by_rank0(problem: str, watchdog: Watchdog) -> bool:
    """Let rank 0 know why another rank ends; return whether it says so: at once, or at the end of this rank."""
    if watchdog.rank == 0 or watchdog.connected:
        return True
    return tell_rank0(watchdog.rank, problem, lambda: watchdog.stop.reason is not None)


def _failed(error: Exception, watchdog: Watchdog) -> int:
    """End with a fault: this rank's, or in a collective the fault of one that has died."""
    stop, console = watchdog.stop, watchdog.console
    stop.leave_loop()
    traceback.print_exc()
    if watchdog.wait_for_failure(AFTER_COLLECTIVE if _is_of_a_collective(error) else AFTER_ERROR):
        return _stopped(StoppedEarly(stop.reason or "another process was asked to stop"), watchdog)
    where = f"; the traceback is in {console.log_file}" if console.log_file else ""
    what = f"{type(error).__name__}: {error}"
    console.fail(f"train.py: rank {watchdog.rank} failed: {what}{where}")
    _is_said_by_rank0(what, watchdog)
    watchdog.leave("failed", status=1, reason=what, announced=True)
    return 1


def _is_of_a_collective(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _COLLECTIVE.search(str(error)) is not None
    )

"""How train.py ends: in order, refused, failed, or because of another rank.

One line for the user, a status for the shell; the traceback, if there is one, goes where the libraries print: into the
run's log.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from common.console import Console
from common.errors import UserError
from training.processes.stopping import NOTHING_LOST, StoppedEarly, StopRequest
from training.processes.watchdog import Watchdog

SETTLE = 0.3  # seconds after which a signal has surely arrived that others of its group have had already
AFTER_SIGNAL = 2.0  # seconds to learn whether the launcher asked to stop because another rank has died
AFTER_COLLECTIVE = 12.0  # seconds to learn which rank made a collective fail; enough for one on another machine
AFTER_ERROR = 1.0
_COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket|broken pipe|timed? ?out|store", re.IGNORECASE
)


def guarded(body: Callable[[], int], *, rank: int, console: Console, stop: StopRequest, watchdog: Watchdog) -> int:
    """Run `body`; the exit status: 0 for an end in order, 2 for wrong input, 1 for a fault.

    Where another rank is to blame, the watchdog says so and ends the process: this does not return then.
    """
    ending = _Ending(rank, console, stop, watchdog)
    try:
        status = body()
    except StoppedEarly as order:
        return ending.stopped(order)
    except UserError as error:
        return ending.refused(error)
    except SystemExit as error:
        stop.leave_loop()
        watchdog.leave("failed" if error.code else "finished", status=2, said=True)
        raise
    except Exception as error:
        return ending.failed(error)
    stop.leave_loop()
    watchdog.leave("finished")
    return status


class _Ending:
    def __init__(self, rank: int, console: Console, stop: StopRequest, watchdog: Watchdog) -> None:
        self.rank, self.console, self.stop, self.watchdog = rank, console, stop, watchdog

    def stopped(self, order: StoppedEarly) -> int:
        """Asked to stop in set-up; unless that is only what the launcher does when a rank has died."""
        self.stop.leave_loop()
        self.watchdog.explain(AFTER_SIGNAL)
        self.console.say(f"{order}: {NOTHING_LOST}")
        self.watchdog.leave("stopped", why=str(order), said=True)
        return 0

    def refused(self, error: UserError) -> int:
        """All ranks meet most wrong input, so only rank 0 speaks of it; the watchdogs tell it what only others met."""
        if self.stop.reason is not None and self.stop.in_set_up:  # a library has wrapped the order to stop
            return self.stopped(StoppedEarly(self.stop.reason))
        if self.watchdog.together and self.stop.in_set_up:
            try:
                time.sleep(SETTLE)  # the launcher ends the workers that tokenise, then this process
            except StoppedEarly as order:
                return self.stopped(order)
        self.stop.leave_loop()
        # before the ranks have met, the first process of another machine has nobody to tell it to
        speaks = self.rank == 0 or (not self.watchdog.together and os.environ.get("LOCAL_RANK") == "0")
        if speaks:
            self.console.fail(f"train.py: {error}")
        self.watchdog.leave("failed", status=2, why=str(error), said=speaks)
        return 2

    def failed(self, error: Exception) -> int:
        """A fault: this rank's, or in a collective the fault of one that has died."""
        self.stop.leave_loop()
        traceback.print_exc()
        if self.watchdog.explain(AFTER_COLLECTIVE if _of_a_collective(error) else AFTER_ERROR):
            return self.stopped(StoppedEarly(self.stop.reason or "another process was asked to stop"))
        where = f"; the traceback is in {self.console.log_file}" if self.console.log_file else ""
        what = f"{type(error).__name__}: {error}"
        self.console.fail(f"train.py: rank {self.rank} failed: {what}{where}")
        self.watchdog.leave("failed", status=1, why=what, said=True)
        return 1


def _of_a_collective(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _COLLECTIVE.search(str(error)) is not None
    )

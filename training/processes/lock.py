"""One run at a time in one folder: rank 0 holds `runs/NAME/lock` for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError

WAIT = 60.0  # seconds for a holder that is ending: it finishes a step and saves
GRACE = 5.0  # seconds in which a holder may show that it is ending: one whose launcher has just been killed, say
POLL = 0.2


class RunLock:
    """The kernel frees it with the process that holds it, however that dies.

    A record lock (lockf), not flock: a forked child does not inherit it, so no orphan can keep a run shut.
    """

    def __init__(self, output: Path, *, wait: float = WAIT, grace: float = GRACE) -> None:
        self.path = output / "lock"
        self.wait, self.grace = wait, grace
        self._descriptor: int | None = None
        self._since = ""

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the folder; waits while its holder is ending, and says so; UserError if another run has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): give another --output") from None
        try:
            self._wait_for(descriptor, say)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._since = descriptor, time.strftime("%Y-%m-%d %H:%M:%S")
        self._write(ending=False)

    def _wait_for(self, descriptor: int, say: Callable[[str], None]) -> None:
        started, told = time.monotonic(), False
        while not _lock(descriptor, say):
            holder, waited = _read(descriptor), time.monotonic() - started
            if waited >= (self.wait if holder.get("ending") else min(self.grace, self.wait)):
                raise UserError(_refusal(self.path.parent, holder, waited))
            if holder.get("ending") and not told:
                told = True
                say(
                    f"{self.path.parent}: {_name(holder)} is ending its run there; waiting for it, "
                    f"{self.wait:.0f} s at most"
                )
            time.sleep(POLL)

    def ending(self) -> None:
        """Tell a next start that it is worth waiting; safe in a signal handler, and without the lock."""
        with suppress(OSError):
            self._write(ending=True)

    def release(self) -> None:
        """Let the next run in; the file stays, for deleting it would open a gap between two others."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _write(self, *, ending: bool) -> None:
        if self._descriptor is None:
            return
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since, "ending": ending}
        text = (json.dumps(holder) + "\n").encode()
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size), 0)


def _lock(descriptor: int, say: Callable[[str], None]) -> bool:
    """Whether it is ours now. A file system without locks is no reason not to train."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        say(f"this file system has no locks ({error.strerror}): take care that no second run has the same --output")
    return True


def _read(descriptor: int) -> dict[str, Any]:
    """Who holds it; nothing while that is just being written."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


def _refusal(output: Path, holder: dict[str, Any], waited: float) -> str:
    if holder.get("ending"):
        return (
            f"{output}: {_name(holder)} has been ending its run there for more than {waited:.0f} s: start again "
            "when it is gone, or end it with kill -9"
        )
    since = f" since {holder['since']}" if holder.get("since") else ""
    return f"{output}: {_name(holder)} has been training there{since}: wait for it, stop it, or give another --output"

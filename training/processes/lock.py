"""One run at a time in one folder: rank 0 holds `runs/NAME/lock` for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError

# Seconds
ENDING_TIMEOUT = 60.0  # for a holder that is ending: it finishes a step and saves
GRACE = 5.0  # in which a holder may show that it is ending: one whose launcher has just been killed, say
POLL = 0.2


class RunLock:
    """A record lock, which the kernel frees with the process that holds it, however that dies.

    It is taken with lockf and not flock: a forked child does not inherit it, so no orphan can keep a run locked.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / "lock"
        self.token = uuid.uuid4().hex  # of this run of the program, for other machines to recognize the folder by
        self._descriptor: int | None = None
        self._since = ""

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the folder. Wait while its holder is ending, and say so; raise UserError if another run has it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): give another --output") from None
        _wait_for(descriptor, self.path.parent, say)
        self._descriptor, self._since = descriptor, time.strftime("%Y-%m-%d %H:%M:%S")
        self._write(ending=False)
        os.fsync(descriptor)  # so that a network file system shows it to the other machines

    def mark_ending(self) -> None:
        """Tell a run that starts next that it is worth waiting; safe in a signal handler, and without the lock."""
        with suppress(OSError):
            self._write(ending=True)

    def _write(self, *, ending: bool) -> None:
        if self._descriptor is None:
            return
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since, "ending": ending}
        text = (json.dumps(holder | {"token": self.token}) + "\n").encode()
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size), 0)


def _wait_for(descriptor: int, folder: Path, say: Callable[[str], None]) -> None:
    """Return when the lock is ours; UserError if its holder does not end."""
    started, said = time.monotonic(), False
    while not _try_lock(descriptor, say):
        holder, waited = _holder(os.pread(descriptor, 4096, 0)), time.monotonic() - started
        name = f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "another process"
        if not holder.get("ending"):
            if waited >= GRACE:
                since = f" since {holder['since']}" if holder.get("since") else ""
                raise UserError(
                    f"{folder}: {name} has been training there{since}: wait for it, stop it, or give another --output"
                )
        elif waited >= ENDING_TIMEOUT:
            raise UserError(
                f"{folder}: {name} has been ending its run there for more than {waited:.0f} s: start again when it is "
                "gone, or end it with kill -9"
            )
        elif not said:
            said = True
            say(f"{folder}: {name} is ending its run there; waiting for it, {ENDING_TIMEOUT:.0f} s at most")
        time.sleep(POLL)


def _try_lock(descriptor: int, say: Callable[[str], None]) -> bool:
    """Return whether the lock is ours now. A file system without locks is no reason not to train."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        say(f"this file system has no locks ({error.strerror}): take care that no second run has the same --output")
    return True


def _holder(content: bytes) -> dict[str, Any]:
    """Return what the file says of who holds the lock; nothing while that is just being written."""
    with suppress(ValueError):
        holder = json.loads(content)
        return holder if isinstance(holder, dict) else {}
    return {}


def read_token(output: Path) -> str:
    """Return the token of the run that has, or had, the folder; empty if none can be read.

    Not for the holder itself: a process that closes any descriptor of a file gives up its POSIX locks on it.
    """
    with suppress(OSError):
        return str(_holder((output / "lock").read_bytes()).get("token", ""))
    return ""

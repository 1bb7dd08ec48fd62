"""Scripts run in processes that are forked from one in which PyTorch and DeepSpeed are imported already.

Importing them takes 8 seconds of a core, and the tests start some hundred processes. What a real start does is tested
through the launcher, which imports everything anew.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from unittest import mock

from training.processes import stopping

PRELOADED = ["torch", "deepspeed", "training.run", "training.trainer", "training.engine.build"]
FROM_THE_START = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # read when the libraries are imported


class ForkedScript:
    """What `subprocess.Popen([python, script, ...])` is to its caller, as far as the tests need it."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.args = command
        self._process = context.Process(target=_run, args=(command[1:], folder, environment, output), daemon=True)
        with mock.patch.dict(os.environ, FROM_THE_START):
            self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    """Become the process that `python command` would be."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    script = str(command[0])
    sys.argv = [script, *command[1:]]
    sys.path[:0] = [str(Path(script).parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    stopping._IMPORTED = time.monotonic()  # of this process, not of the one that it was forked from
    status = _status(script)
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _status(script: str) -> int:
    """Run the script; return the exit status that the interpreter would end with."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

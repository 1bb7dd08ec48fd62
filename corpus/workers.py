"""A pool of worker processes that know only the corpus package.

Plain child processes that speak pickle over their standard streams, rather than multiprocessing: its start methods
either fork a process that may already hold torch and CUDA, or import the caller's main script again in every worker.
These can be started from any script, notebook or shell, and load tokenizers and numpy, nothing more. A worker ends
when its input closes, so none outlives the main process, however that dies.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from common.errors import UserError

PARALLELISM = "TOKENIZERS_PARALLELISM"
# Tasks under way for each worker: one in work, one or two ready, so that nobody waits and memory stays bounded.
TASKS_PER_WORKER = 3


class WorkerLost(UserError):
    """A worker process that ended before its task."""


class _Worker:
    """One child process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # `-m` finds the package in the working directory; the cores are shared out between the workers already.
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, PARALLELISM: "false"},
            # Ctrl-C reaches the main process alone, which then ends the workers.
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return function(*arguments), or raise what it raised there."""
        try:
            pickle.dump((function, arguments), self.requests, protocol=pickle.HIGHEST_PROTOCOL)
            self.requests.flush()
            succeeded, result = pickle.load(self.replies)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise WorkerLost(
                "a worker process ended early (killed, or out of memory?); run again, perhaps with fewer --workers"
            ) from None
        if not succeeded:
            raise result
        return result


class WorkerPool:
    """Runs functions of this package on many tasks, in `workers` processes, or in this one if `workers` is 0.

    A context manager; leaving it, in whatever way, ends the processes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._started: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(max(1, workers))

    def __enter__(self) -> WorkerPool:
        for _ in range(self.workers):
            self._started.append(_Worker())
            self._idle.put(self._started[-1])
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._started:
            worker.process.kill()
        for worker in self._started:
            worker.process.wait()
        # The threads see the end of their pipes now, so this does not block.
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._started:
            worker.replies.close()
            with suppress(OSError):  # what was left to write has no reader any more
                worker.requests.close()

    def map(self, function: Callable[..., Any], tasks: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield function(*task) in the order of the tasks, taking tasks only as fast as they are done."""
        if not self.workers:
            with sequential_tokenizers():
                for task in tasks:
                    yield function(*task)
            return
        running: deque[Future[Any]] = deque()
        for task in tasks:
            running.append(self._threads.submit(self._call, function, task))
            if len(running) >= TASKS_PER_WORKER * self.workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of one call."""
        return next(self.map(function, iter([arguments])))

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(function, arguments)
        finally:
            self._idle.put(worker)


@contextmanager
def sequential_tokenizers() -> Iterator[None]:
    """Keep the tokenizers library from starting threads in this process, which may want to fork later."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


def serve() -> None:
    """Answer requests until the input ends: the worker's side."""
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not disturb the replies
    while True:
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = (True, function(*arguments))
        except Exception as error:
            reply = (False, error)
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


if __name__ == "__main__":
    serve()

"""What a check found: a line on the terminal and an entry of preflight.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.console import Console
from training.checkpointing.write_failures import write_text


@dataclass(frozen=True)
class Result:
    """The result of a check: `text` has the figure, and `hint` says what to do unless it passed."""

    level: str
    """"pass", "warn" or "fail"."""
    text: str
    hint: str = ""

    def line(self, check_id: str) -> str:
        """Return the line for the terminal."""
        level = "FAIL" if self.level == "fail" else self.level
        return f"  {level}  {check_id:<18}  {self.text}" + (f"; {self.hint}" if self.hint else "")


def passed(text: str) -> Result:
    """Return the result of a check that found everything as it should be."""
    return Result("pass", text)


def warned(text: str, hint: str) -> Result:
    """Return a result that is worth knowing; the run goes on."""
    return Result("warn", text, hint)


def failed(text: str, hint: str) -> Result:
    """Return a result that stops the run, which would waste its hours."""
    return Result("fail", text, hint)


class Report:
    """The results so far by the id of their check; each is printed as soon as it is known."""

    def __init__(self, console: Console, path: Path) -> None:
        """Begin a report that `write` puts into the file `path` (rank 0)."""
        self.console, self.path = console, path
        self.results: list[tuple[str, Result]] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the checks have taken so far."""
        return time.monotonic() - self._started

    def add(self, check_id: str, result: Result, *, alone: bool = False) -> None:
        """Keep a result and print its line, on rank 0 or where a rank is `alone` in finding it."""
        self.results.append((check_id, result))
        (self.console.fail if alone else self.console.say)(result.line(check_id))

    @property
    def failed(self) -> list[str]:
        """The ids of the checks that failed."""
        return [check_id for check_id, result in self.results if result.level == "fail"]

    def write(self) -> None:
        """Print how many checks ended how, and write preflight.json, if the disk has room for it."""
        seconds = self.seconds
        counts = Counter(result.level for _, result in self.results)
        checks = [{"id": check_id, **vars(result), "ok": result.level != "fail"} for check_id, result in self.results]
        if self.console.rank == 0:
            content = json.dumps({"checks": checks, "seconds": round(seconds, 1)}, indent=2, ensure_ascii=False)
            write_text(self.path, content + "\n", self.console.say)
        self.console.say(
            f"preflight: {counts['pass']} passed, {counts['warn']} warned, {counts['fail']} failed, in {seconds:.1f} s"
        )

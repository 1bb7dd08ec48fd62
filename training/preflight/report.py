"""What a check found: a line on the terminal and an entry of preflight.json."""

from __future__ import annotations

import json
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

    def __init__(self, console: Console) -> None:
        self.console = console
        self.results: list[tuple[str, Result]] = []

    def add(self, check_id: str, result: Result) -> None:
        """Keep a result and print its line (rank 0)."""
        self.results.append((check_id, result))
        self.console.say(result.line(check_id))

    @property
    def failed(self) -> list[str]:
        """The ids of the checks that failed."""
        return [check_id for check_id, result in self.results if result.level == "fail"]

    def count(self, level: str) -> int:
        """Return how many checks ended with `level`."""
        return [result.level for _, result in self.results].count(level)

    def write(self, path: Path, seconds: float) -> None:
        """Write preflight.json, if the disk has room for it."""
        checks = [{"id": check_id, **vars(result), "ok": result.level != "fail"} for check_id, result in self.results]
        content = {"checks": checks, "seconds": round(seconds, 1)}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", self.console.say)

"""What a check found, and how it is told: a line on the terminal and an entry of preflight.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.console import Console
from training.checkpointing.disk import write_text

_SHOWN = {"pass": "pass", "warn": "warn", "fail": "FAIL"}


@dataclass(frozen=True)
class Check:
    """`level` is "pass", "warn" or "fail"; `text` holds the figure, `mend` what to do where it is not a pass."""

    id: str
    level: str
    text: str
    mend: str = ""

    @property
    def ok(self) -> bool:
        """Whether the run may start."""
        return self.level != "fail"

    def line(self) -> str:
        """For the terminal."""
        mend = f"; {self.mend}" if self.mend else ""
        return f"  {_SHOWN[self.level]}  {self.id:<18}  {self.text}{mend}"

    def record(self) -> dict[str, Any]:
        """For preflight.json."""
        return asdict(self) | {"ok": self.ok}


def passed(check_id: str, text: str) -> Check:
    """As it should be."""
    return Check(check_id, "pass", text)


def warned(check_id: str, text: str, mend: str) -> Check:
    """Worth knowing; the run goes on."""
    return Check(check_id, "warn", text, mend)


def failed(check_id: str, text: str, mend: str) -> Check:
    """The run would waste its hours."""
    return Check(check_id, "fail", text, mend)


class Report:
    """The checks so far, each told as soon as it is known."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.checks: list[Check] = []

    def add(self, check: Check) -> Check:
        """Keep a check and print its line (rank 0)."""
        self.checks.append(check)
        self.console.say(check.line())
        return check

    @property
    def failed(self) -> list[str]:
        """Ids of what must be mended."""
        return [check.id for check in self.checks if not check.ok]

    def write(self, path: Path, seconds: float) -> None:
        """preflight.json, if the disk has room for it."""
        content = {"checks": [check.record() for check in self.checks], "seconds": round(seconds, 1)}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", self.console.say)

"""One case, run and judged: success or one sentence for the user, and nothing touched that is not the case's own."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from stress.fuzz.choices import Choices

MOST_CHARACTERS = 6_000  # of a message; one that lists a dozen problems has 2,000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
    "shutil.move",
    "os.chmod",
)
_RUNS_CODE = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
)

Case = Callable[[Choices, Path, Path], str]
"""(decisions, empty folder, file outside of it that must not be read) -> a word for the success."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `kind` is "fine", "refused" or "finding"; equal `label`s are the same outcome."""

    kind: str
    label: str
    details: str = ""


class Guard:
    """Runs cases in a folder of its own under `place` and watches what they do. One for a process, used in turn."""

    def __init__(self, place: Path) -> None:
        self.folder = place.resolve() / "case"
        self.outside = place.resolve() / "outside.txt"
        self.outside.write_text("a secret\n")
        self._watching = False
        self._wrong: list[str] = []
        sys.addaudithook(self._audit)

    def run(self, case: Case, data: bytes) -> Outcome:
        """Judge one case."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._wrong.clear()
        self._watching = True
        try:
            outcome = Outcome("fine", case(Choices(data), self.folder, self.outside))
        except UserError as error:
            outcome = _judge_message(str(error))
        except BaseException as error:  # panics of Rust libraries and SystemExit are no Exceptions
            outcome = Outcome("finding", _place(error), traceback.format_exc())
        finally:
            self._watching = False
        if self._wrong:
            return Outcome("finding", self._wrong[0].split(":")[0], "\n".join(self._wrong[:20]))
        return outcome

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)):
                self._check_open(path, flags or 0)
        elif event in _CHANGES:
            self._check_changed(event, arguments)
        elif event in _RUNS_CODE:
            self._wrong.append(f"{event}: {arguments!r}"[:300])

    def _check_open(self, path: Any, flags: int) -> None:
        real = self._real(path)
        if real == str(self.outside):
            self._wrong.append(f"a file outside of the folder was read: {path!r}")
        elif flags & _WRITING and not self._inside(real) and real != os.devnull:
            self._wrong.append(f"a file outside of the folder was opened to write: {real}")

    def _check_changed(self, event: str, arguments: tuple[Any, ...]) -> None:
        both, second = ("os.rename", "shutil.move"), ("os.symlink", "os.link")
        paths = arguments[:2] if event in both else arguments[1:2] if event in second else arguments[:1]
        for path in paths:
            # relative to a directory that is open: what shutil.rmtree does below a folder that was checked itself
            if isinstance(path, (str, bytes, os.PathLike)) and os.path.isabs(path):
                parent = self._real(os.path.dirname(os.fsdecode(path)))
                if not self._inside(parent) and self._real(path) != str(self.folder):
                    self._wrong.append(f"{event} outside of the folder: {path!r}")

    def _inside(self, real: str) -> bool:
        return real == str(self.folder) or real.startswith(f"{self.folder}{os.sep}")

    @staticmethod
    def _real(path: Any) -> str:
        try:
            return os.path.realpath(os.fsdecode(path))
        except ValueError:  # a NUL, or half a surrogate pair
            return ""


def _judge_message(text: str) -> Outcome:
    """Whether a terminal can show it, and a person read it."""
    label = _words(text)
    if any(not (c.isprintable() or c == "\n") for c in text):  # half surrogate pairs are not printable either
        return Outcome("finding", f"unprintable message: {label}", repr(text[:2000]))
    if len(text) > MOST_CHARACTERS:
        return Outcome("finding", f"long message: {label}", f"{len(text):,} characters:\n{text[:2000]}")
    if not text.strip() or "Traceback" in text:
        return Outcome("finding", f"no message: {label}", text[:2000])
    return Outcome("refused", label)


def _words(text: str) -> str:
    """A message without its names and figures: the first problem's sentence."""
    line = next((line for line in text.splitlines()[1:] if line.startswith("  1. ")), text.partition("\n")[0])
    line = re.sub(r"\S*/\S*|[\"'].*[\"']|[\d,.]+|[^\x00-\x7f]+", "_", line)
    return re.sub(r"\W+", " ", line).strip()[:70]


def _place(error: BaseException) -> str:
    """The kind of an error and the innermost line of this project that it came through."""
    root = str(Path(__file__).resolve().parents[2])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(root) and "/.venv/" not in frame.filename
    ]
    where = f"{os.path.relpath(frames[-1].filename, root)}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"

"""What the scripts' command lines share: the parser, converters for `type=`, and one way to run and to end.

Wrong input gets one sentence and exit status 2; a misspelled flag is answered with the nearest one that exists.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from common.console import prepare_streams
from common.errors import UserError

_MOST_NAMED = 3
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_LONGEST_SECONDS = 10 * 365 * 86400.0


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and leave."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and keep what was given for `error`."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and, for each flag that does not exist, the nearest that does."""
        flag = message.removeprefix("argument ").partition(": expected ")[0].split("/")[0]
        after = dict(zip(self._given, self._given[1:], strict=False)).get(flag, "")
        if ": expected " in message and after.startswith("-") and after not in self._option_string_actions:
            written = after if re.fullmatch(r"[\w.,-]+", after) else shlex.quote(after)
            raise UserError(f"{message}; a value that begins with a dash is written {flag}={written}")
        raise UserError(f"{message}{''.join(map(self._hint, self._unknown()[:_MOST_NAMED]))}; --help lists the flags")

    def _unknown(self) -> list[str]:
        flags = [word.partition("=")[0] for word in self._given if word.startswith("--") and word != "--"]
        return [flag for flag in dict.fromkeys(flags) if flag not in self._option_string_actions]

    def _hint(self, flag: str) -> str:
        known = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        near = difflib.get_close_matches(flag, known, n=1)
        return f"; there is no {flag[:60]}" + (f", did you mean {near[0]}?" if near else "")


def boolean(text: str) -> bool:
    """Convert `true` or `false`, as JSON writes them."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def duration(text: str) -> float:
    """Return the seconds of "11h30m", "45m", "90s" or a plain number of seconds."""
    match = _DURATION.fullmatch(f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text)
    if not match or not text:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a duration: write it like 11h30m, 45m or 90s")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= _LONGEST_SECONDS:
        how = "long" if seconds else "short"
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is too {how} a time: give more than 0 and at most ten years")
    return seconds


def whole(text: str) -> int:
    """Convert a whole number of at least 0; 1_000 and 1,000 are read too."""
    return _whole(text, 0)


def positive(text: str) -> int:
    """Convert a whole number of at least 1."""
    if (value := _whole(text, 1)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: give at least 1")
    return value


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d[\d_,]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text.replace(",", "").replace("_", ""))


def at_least_zero(text: str) -> float:
    """Convert a finite number of at least 0."""
    if not 0 <= (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value


def amount(text: str) -> float:
    """Convert a finite number above 0."""
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a converter that takes one of `choices` and nothing else."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} must be one of {', '.join(choices)}")
        return text

    return convert


def check_output_file(flag: str, path: Path | None) -> None:
    """Raise UserError before minutes are spent, unless `path` can be a file in a folder that exists."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: give a file in it")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.resolve().parent}: create it first")


def write_output_file(path: Path, text: str) -> None:
    """Write what a flag asked for; UserError if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another place") from None


def run_script(
    body: Callable[[], object], *, interrupted: Callable[[], str] = lambda: "", output_is_the_work: bool = True
) -> int:
    """Run the body of a script and return the exit status for the shell.

    0 is success, 2 is wrong input (a UserError, printed as it is), 130 is Ctrl-C, after which `interrupted()` says
    what became of the output. A reader that has enough (`| head`) ends the script in silence; an output that cannot
    be written to is status 1, or 0 where it only tells of work that is done.
    """
    prepare_streams()
    status = 0
    try:
        status = _status(body, interrupted)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        if error.filename is not None:  # of another file than the output, which has no name: a fault of ours
            raise
        _discard_output()
        if not status:
            _complain(f"the output cannot be written ({error.strerror}): send it to another place")
            status = int(output_is_the_work)
    return status


def _status(body: Callable[[], object], interrupted: Callable[[], str]) -> int:
    try:
        body()
    except UserError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain(f"\n{interrupted()}".rstrip())
        return 130
    return 0


def _complain(text: str) -> None:
    """Print to standard error, which may be full or closed as well."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Let the interpreter's last flush succeed: what is still buffered has nowhere to go."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

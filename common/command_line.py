"""The command lines' parser: one sentence for wrong input, and the flag that a misspelled one was meant to be."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from common.errors import UserError

_MOST_NAMED = 3


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse would print its usage and leave."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; what was given is kept for `error`."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._given, namespace)

    def error(self, message: str) -> NoReturn:
        """UserError with the message and, for flags that there are none of, what is nearest to each."""
        raise UserError(f"{message}{''.join(map(self._hint, self._unknown()[:_MOST_NAMED]))}; --help lists the flags")

    def _unknown(self) -> list[str]:
        flags = [word.partition("=")[0] for word in self._given if word.startswith("--") and word != "--"]
        return [flag for flag in dict.fromkeys(flags) if flag not in self._option_string_actions]

    def _hint(self, flag: str) -> str:
        known = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        near = difflib.get_close_matches(flag, known, n=1)
        return f"; there is no {flag[:60]}" + (f", did you mean {near[0]}?" if near else "")

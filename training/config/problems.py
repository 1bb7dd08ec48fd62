"""Collecting what is wrong with a DeepSpeed configuration, to say it all at once."""

from __future__ import annotations

import json

from common.errors import UserError
from common.files import printable

_MOST_LISTED = 20


class Problems:
    """Every problem of one configuration, one a key: the first is the cause, others would only repeat it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str]] = {}

    def add(self, key: str, what: str, hint: str) -> None:
        """Note `what` is wrong with `key`; `hint` says what to write instead."""
        self._found.setdefault(key, (what, hint))

    def about(self, *keys: str) -> bool:
        """Return whether something is known to be wrong with one of the keys."""
        return any(key in self._found for key in keys)

    def raise_if_any(self, source: str) -> None:
        """Raise one UserError that lists them all."""
        if not self._found:
            return
        count = len(self._found)
        lines = [f"{source}: {count} problem{'s' if count > 1 else ''}, nothing was started."]
        said: dict[str, int] = {}
        for number, (key, (what, hint)) in enumerate(list(self._found.items())[:_MOST_LISTED], 1):
            lines += [
                f"  {number}. {printable(key)}: {what}",
                f"     {f'As in {said[hint]}.' if hint in said else hint}",
            ]
            said.setdefault(hint, number)
        if count > _MOST_LISTED:
            lines.append(f"  and {count - _MOST_LISTED} more.")
        raise UserError("\n".join(lines))


def show(value: object) -> str:
    """Return a value as the file writes it, shortened to fit a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        return "…"
    return printable(text, 60)

"""Whether JSON that came from a file has the shape that the code which uses it expects."""

from __future__ import annotations

from typing import Any

COUNT, NUMBER, TEXT, FLAG = "count", "number", "text", "flag"
EACH = "*"  # as the one key of a shape: whatever the keys, this is what their values are
_MOST = 2**53
_MOST_KEY = 100  # characters


class Maybe:
    """A shape that null may stand for."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


def fits(value: object, shape: Any) -> bool:
    """A shape is COUNT, NUMBER, TEXT or FLAG, `Maybe(shape)`, [shape], {EACH: shape}, or {key: shape}, where more keys
    do no harm. Numbers are finite; the keys of EACH can be shown to people.
    """
    if isinstance(shape, Maybe):
        return value is None or fits(value, shape.shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict) and EACH in shape:
        return isinstance(value, dict) and all(
            key.isprintable() and len(key) <= _MOST_KEY and fits(inner, shape[EACH]) for key, inner in value.items()
        )
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], shape[key]) for key in shape)
    if shape in (TEXT, FLAG):
        return isinstance(value, str if shape == TEXT else bool)
    return type(value) in ((int,) if shape == COUNT else (int, float)) and 0 <= value <= _MOST

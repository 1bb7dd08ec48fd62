"""What a value in a DeepSpeed JSON file must be: in words for the message, and as a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Union

_MOST = 2**53  # beyond it a float no longer counts in ones, and no batch or bucket is that large


class Kind(NamedTuple):
    """One kind of value."""

    words: str
    fits: Callable[[object], bool]


Schema = Mapping[str, Union[Kind, "Schema"]]
"""The keys of a block, each with the kind of its value or the keys of the block that it holds."""


def as_number(value: object) -> float | None:
    """Return `value` as a finite float, or None if it is no number; JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _number(words: str, test: Callable[[float], bool] = lambda number: True) -> Kind:
    def fits(value: object) -> bool:
        number = as_number(value)
        return number is not None and test(number)

    return Kind(words, fits)


def _integer(least: int) -> Kind:
    return Kind(f"a whole number of at least {least}", lambda value: type(value) is int and least <= value <= _MOST)


def _size(least: int) -> Kind:
    """Bucket sizes are often written 5e8, which JSON reads as a float."""
    return _number(f"a whole number of at least {least}", lambda n: least <= n <= _MOST and n == int(n))


def one_of(*choices: object) -> Kind:
    """Return the kind of a value with a fixed set of choices."""
    # "is" beside "==": in Python True == 1, but in JSON true is no ZeRO stage
    return Kind(
        f"one of {', '.join(map(str, choices))}",
        lambda value: any(value == choice and type(value) is type(choice) for choice in choices),
    )


BOOL = Kind("true or false (without quotes)", lambda value: isinstance(value, bool))
COUNT, INDEX = _integer(1), _integer(0)
POSITIVE_SIZE, SIZE = _size(1), _size(0)
POSITIVE = _number("a number above 0", lambda number: number > 0)
NOT_NEGATIVE = _number("a number of at least 0", lambda number: number >= 0)
RATIO = _number("a number from 0 to 1", lambda number: 0 <= number <= 1)
NUMBER = _number("a number")
NUMBERS = Kind(
    "a number, or a list of numbers (one for each parameter group)",
    lambda value: all(map(NUMBER.fits, value)) and bool(value) if isinstance(value, list) else NUMBER.fits(value),
)
BETAS = Kind(
    "two numbers from 0 to below 1, such as [0.9, 0.999]",
    lambda value: isinstance(value, list) and len(value) == 2 and all(RATIO.fits(n) and n < 1 for n in value),
)
TEXT = Kind('a text in "quotes"', lambda value: isinstance(value, str))
BLOCK = Kind("a block in { }", lambda value: isinstance(value, dict))
ANY = Kind("anything", lambda value: True)

"""What a value in a DeepSpeed JSON file must be: a kind is the words that say it in a message, or a list of choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

_MOST = 2**53  # beyond it a float no longer counts in ones, and no batch or bucket is that large

Kind: TypeAlias = "str | list"
Schema: TypeAlias = "Mapping[str, Kind | Schema]"
"""The keys of a block, each with the kind of its value or the keys of the block that it holds."""

ANY, BLOCK, TEXT, BOOL = "anything", "a block in { }", 'a text in "quotes"', "true or false (without quotes)"
INDEX, COUNT, AT_LEAST_MINUS_1 = (f"a whole number of at least {least}" for least in (0, 1, -1))
# bucket sizes are often written 5e8, which JSON reads as a float
SIZE, POSITIVE_SIZE = (f"a whole number of at least {least}, also as 5e8" for least in (0, 1))
NUMBER, POSITIVE, NOT_NEGATIVE = "a number", "a number above 0", "a number of at least 0"
RATIO = "a number from 0 to 1"
NUMBERS = "a number, or a list of numbers (one for each parameter group)"
BETAS = "two numbers from 0 to below 1, such as [0.9, 0.999]"


def as_number(value: object) -> float:
    """Return `value` as a float, NaN if it is no finite number; JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


_TESTS: Mapping[str, Callable[[object], bool]] = {
    ANY: lambda value: True,
    BLOCK: lambda value: isinstance(value, dict),
    TEXT: lambda value: isinstance(value, str),
    BOOL: lambda value: isinstance(value, bool),
    INDEX: lambda value: type(value) is int and 0 <= value <= _MOST,
    COUNT: lambda value: type(value) is int and 1 <= value <= _MOST,
    AT_LEAST_MINUS_1: lambda value: type(value) is int and -1 <= value <= _MOST,
    SIZE: lambda value: 0 <= as_number(value) <= _MOST and as_number(value).is_integer(),
    POSITIVE_SIZE: lambda value: 1 <= as_number(value) <= _MOST and as_number(value).is_integer(),
    NUMBER: lambda value: not math.isnan(as_number(value)),
    POSITIVE: lambda value: as_number(value) > 0,
    NOT_NEGATIVE: lambda value: as_number(value) >= 0,
    RATIO: lambda value: 0 <= as_number(value) <= 1,
    NUMBERS: lambda value: bool(value) if isinstance(value, list) else fits(NUMBER, value),
    BETAS: lambda value: isinstance(value, list) and len(value) == 2 and all(0 <= as_number(n) < 1 for n in value),
}


def fits(kind: Kind, value: object) -> bool:
    """Return whether a value is of a kind."""
    if isinstance(kind, list):  # in Python True == 1, but in JSON true is no ZeRO stage
        return any(value == choice and type(value) is type(choice) for choice in kind)
    if kind == NUMBERS and isinstance(value, list) and not all(fits(NUMBER, each) for each in value):
        return False
    return _TESTS[kind](value)


def in_words(kind: Kind) -> str:
    """Return what a value of the kind is, as it follows "Write"."""
    return kind if isinstance(kind, str) else f"one of {', '.join(map(str, kind))}"

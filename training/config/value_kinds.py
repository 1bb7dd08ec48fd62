"""What a value in a DeepSpeed JSON file must be: a kind is the words that say it in a message, or a list of choices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

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

_MOST = 2**53  # beyond it a float no longer counts in ones, and no batch or bucket is that large
_TYPES: Mapping[str, Any] = {
    ANY: Any,
    BLOCK: dict,
    TEXT: str,
    BOOL: bool,
    INDEX: Annotated[int, Field(ge=0, le=_MOST)],
    COUNT: Annotated[int, Field(ge=1, le=_MOST)],
    AT_LEAST_MINUS_1: Annotated[int, Field(ge=-1, le=_MOST)],
    SIZE: Annotated[float, Field(ge=0, le=_MOST, multiple_of=1)],
    POSITIVE_SIZE: Annotated[float, Field(ge=1, le=_MOST, multiple_of=1)],
    NUMBER: FiniteFloat,
    POSITIVE: Annotated[FiniteFloat, Field(gt=0)],
    NOT_NEGATIVE: Annotated[FiniteFloat, Field(ge=0)],
    RATIO: Annotated[float, Field(ge=0, le=1)],
    NUMBERS: FiniteFloat | Annotated[list[FiniteFloat], Field(min_length=1)],
    BETAS: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)],
}


def fits(kind: Kind, value: object) -> bool:
    """Return whether a value is of a kind; in Python True == 1, but in JSON true is no ZeRO stage."""
    if isinstance(kind, list):
        return any(value == choice and type(value) is type(choice) for choice in kind)
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@cache
def _adapter(kind: str) -> TypeAdapter:
    return TypeAdapter(_TYPES[kind])


def in_words(kind: Kind) -> str:
    """Return what a value of the kind is, as it follows "Write"."""
    return kind if isinstance(kind, str) else f"one of {', '.join(map(str, kind))}"

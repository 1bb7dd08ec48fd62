"""JSON that came from a file, checked against a class: pydantic models that say in one sentence what does not fit."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.files import printable

MOST = 2**53  # of a count: no run and no corpus is so large, and a float still counts in ones

Count = Annotated[int, Field(ge=0, le=MOST)]
"""A whole number of at least 0."""
Number = Annotated[float, Field(ge=0, le=MOST)]
"""A finite number of at least 0."""


class Record(BaseModel):
    """The base of what is read from JSON: unchangeable, no conversions between types, no infinities.

    Keys that the class does not have are ignored, so that a file of a later version can be read.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def parse_record(kind: type[AnyRecord], value: Any) -> AnyRecord:
    """Return the JSON value `value` as a `kind`; ValueError names the first key that does not fit and why."""
    try:
        return kind.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise ValueError(describe(error)) from None


def describe(error: ValidationError | RecursionError) -> str:
    """Return what is wrong first, with its dotted key: "splits.train.tokens: input should be a valid integer"."""
    if isinstance(error, RecursionError):
        return "blocks within blocks without end"
    first = error.errors(include_url=False, include_context=False)[0]
    place = printable(".".join(str(part) for part in first["loc"]), 80)
    message = printable(first["msg"].removeprefix("Value error, "))
    return f"{place}: {message[:1].lower()}{message[1:]}" if place else message

"""Shapes of JSON, and what does not have them."""

from __future__ import annotations

from typing import Any

import pytest

from common.shape import COUNT, EACH, FLAG, NUMBER, TEXT, Maybe, fits


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (COUNT, [0, 5, 2**53], [-1, True, 1.0, 2**54, "1", None]),
        (NUMBER, [0, 0.5], [-0.5, True, float("inf"), float("nan"), 10**400, "1"]),
        (TEXT, ["", "a"], [1, None, []]),
        (FLAG, [True, False], [0, 1, None]),
        (Maybe(COUNT), [None, 1], ["", False]),
        ([COUNT], [[], [1, 2]], [[1, "a"], {}, None]),
        ({EACH: COUNT}, [{}, {"a": 1}], [{"a": "b"}, {"\x1b": 1}, {"a" * 200: 1}, []]),
        ({"a": COUNT}, [{"a": 1}, {"a": 1, "b": []}], [{}, {"a": None}, []]),
        ({}, [{}, {"a": []}], [[], None]),
    ],
)
def test_what_fits(shape: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fits(value, shape) for value in good)
    assert not any(fits(value, shape) for value in bad)

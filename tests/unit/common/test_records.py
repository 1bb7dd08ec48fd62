"""Records: what fits is taken as it is, and what does not is named with its place."""

import pytest

from common.records import Count, Number, Record, parse_record


class Inner(Record):
    tokens: Count
    loss: Number | None = None


class Outer(Record):
    name: str
    parts: dict[str, Inner]


GOOD = {"name": "a", "parts": {"train": {"tokens": 3, "loss": 1.5}}}


def test_what_fits_is_taken_and_unknown_keys_are_ignored():
    found = parse_record(Outer, {**GOOD, "later": 1})
    assert (found.name, found.parts["train"].tokens, found.parts["train"].loss) == ("a", 3, 1.5)


@pytest.mark.parametrize("value", [True, -1, 1.5, "3", None, 2**60, float("nan")])
def test_a_wrong_value_is_named_with_its_place(value):
    with pytest.raises(ValueError, match=r"^parts\.train\.tokens: "):
        parse_record(Outer, {"name": "a", "parts": {"train": {"tokens": value}}})


def test_a_missing_key_and_a_value_of_another_kind_are_named():
    with pytest.raises(ValueError, match=r"^name: field required"):
        parse_record(Outer, {"parts": {}})
    with pytest.raises(ValueError, match="dict"):
        parse_record(Outer, [1])


def test_a_key_that_a_terminal_would_obey_is_spelled_out():
    with pytest.raises(ValueError, match=r"parts\.\\x1b"):
        parse_record(Outer, {"name": "a", "parts": {"\x1b[2J": {}}})


def test_what_was_read_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_record(Outer, GOOD).name = "b"

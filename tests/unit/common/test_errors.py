"""What a UserError says can be printed, and does nothing to the terminal."""

from __future__ import annotations

import os

from common.errors import UserError


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    error = UserError("a\x1b[31m.jsonl:1: 坏\n  b\r\x00")
    assert str(error) == r"a\x1b[31m.jsonl:1: 坏" + "\n" + r"  b\r\x00"


def test_a_name_that_is_not_utf8_can_be_printed() -> None:
    name = os.fsdecode("中文.jsonl".encode("gbk"))
    assert str(UserError(f"{name}: no such file")).encode("utf-8").startswith(b"\\udcd6")

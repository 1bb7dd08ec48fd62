"""The command lines' parser: a misspelled flag is answered with the one that was meant."""

from __future__ import annotations

import pytest

from common.command_line import Parser
from common.errors import UserError


def parsed(*words: str) -> object:
    parser = Parser(prog="x")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--hidden_size", type=int)
    return parser.parse_args(words)


def test_what_is_right_is_read():
    assert parsed("--checkpoint", "a", "--hidden_size=64").hidden_size == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpont", "a"], "there is no --checkpont, did you mean --checkpoint?"),
        (["--checkpoint", "a", "--hiden_size=64"], "there is no --hiden_size, did you mean --hidden_size?"),
        (["--checkpoint", "a", "--zzz"], "there is no --zzz; --help lists the flags"),
        (["--check", "a"], "there is no --check"),  # no abbreviations
        (["--checkpoint", "a", "--hidden_size", "x"], "--hidden_size: invalid int value: 'x'; --help"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, capsys):
    with pytest.raises(UserError) as error:
        parsed(*words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")

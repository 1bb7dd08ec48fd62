"""The command lines' parser: a misspelled flag is answered with the one that was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.command_line import Parser
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


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
        (["--checkpoint", "-你"], "expected one argument; a value that begins with a dash is written --checkpoint=-你"),
        (["--checkpoint", "--a'b"], """--checkpoint='--a'"'"'b'"""),
        (["--checkpoint", "--hidden_size", "3"], "--checkpoint: expected one argument; --help"),
        (["--checkpoint", "a", "--hidden_size", "x"], "--hidden_size: invalid int value: 'x'; --help"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, capsys):
    with pytest.raises(UserError) as error:
        parsed(*words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


SCRIPT = """
import sys
from common.command_line import run_script
from common.errors import UserError

def body():
    if sys.argv[1] == "wrong":
        raise UserError("不对")
    print("说了")

sys.exit(run_script(body, output_is_the_work=sys.argv[1] != "told"))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    ("where", "what", "status", "error"),
    [
        (">/dev/full", "text", 1, "the output cannot be written (No space left on device): send it to another place\n"),
        (">/dev/full", "told", 0, "the output cannot be written (No space left on device): send it to another place\n"),
        (">/dev/full 2>&1", "told", 0, ""),
        (">/dev/full 2>&1", "wrong", 2, ""),
        (">&-", "text", 0, ""),
        (">/dev/null 2>&-", "wrong", 2, ""),
        ("| true; exit ${PIPESTATUS[0]}", "text", 0, ""),
    ],
)
def test_the_status_is_that_of_the_work_wherever_the_output_goes(where, what, status, error):
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$0" {what} {where}', SCRIPT], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", error)

"""The terminal and the log: who writes where, and that neither can end a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.console import Console, spell_out
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import logging, os, sys, warnings
logging.basicConfig(stream=sys.stdout)
from pathlib import Path
from common.console import Console
console = Console(0)
console.say("before")
console.redirect_libraries(Path(sys.argv[1]))
for _ in range(1000):
    print("printed " * 20)
logging.error("logged")
warnings.warn("warned")
os.system("echo of a child")
print("error", file=sys.stderr, flush=True)
console.say("said, 说")
sys.stdout.flush()
"""


def run(log, stdout, script=SCRIPT, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, log],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_only_what_is_said_reaches_the_terminal(tmp_path):
    done = run(tmp_path / "logs" / "rank0.log", subprocess.PIPE)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "before\nsaid, 说\n", b"")
    log = (tmp_path / "logs" / "rank0.log").read_text()
    assert log.startswith("--- rank 0, process ")
    assert not os.access(tmp_path / "logs" / "rank0.log", os.X_OK)
    assert log.count("printed " * 20) == 1000
    assert all(word in log for word in ("warned", "of a child", "error"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("terminal_too", [False, True])
def test_a_full_disk_under_the_log_or_the_terminal_ends_nothing(terminal_too):
    with open("/dev/full", "wb") as full:
        done = run(
            "/dev/full",
            full if terminal_too else subprocess.PIPE,
            SCRIPT.replace('console.say("before")', "") if terminal_too else SCRIPT,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert terminal_too or done.stdout.decode() == "before\nsaid, 说\n"


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", "?, 4\nsaid, ?\n"), ("gbk", "说, 4\nsaid, 说\n"), ("latin-1", "?, 4\nsaid, ?\n")]
)
def test_a_terminal_that_lacks_characters_gets_the_rest(tmp_path, encoding, said):
    script = SCRIPT.replace('"before"', '"说, 4"')
    done = run(tmp_path / "log", subprocess.PIPE, script, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout.decode(encoding), done.stderr) == (0, said, b"")


def test_a_terminal_that_was_closed_before_the_start_ends_nothing_and_stays_out_of_the_log(tmp_path):
    closing = f'exec {sys.executable} -c "$0" {tmp_path / "log"} >&- 2>&-'
    done = subprocess.run(["bash", "-c", closing, SCRIPT], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    log = (tmp_path / "log").read_text()
    assert log.count("printed " * 20) == 1000
    assert "said" not in log and "before" not in log


def test_no_character_that_a_terminal_obeys_is_printed():
    text = "从前　有\t座\n山\x1b[2J\r\x9b5m\u202e\udc80👩\u200d🚀\x7f"
    shown = "从前　有\t座\n山\\u001b[2J\\u000d\\u009b5m\\u202e\\udc80👩\u200d🚀\\u007f"
    assert spell_out(text) == shown
    assert json.loads(spell_out(json.dumps(text, ensure_ascii=False))) == text  # the escapes are JSON's own


def test_a_terminal_that_goes_away_ends_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + "\nfor _ in range(10000): console.say('x' * 80)", tmp_path / "log"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"run/logs/rank0\.log cannot be written \(Not a directory\).*another --output"):
        Console(0).redirect_libraries(tmp_path / "run" / "logs" / "rank0.log")

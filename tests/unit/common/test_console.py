"""The terminal and the log: who writes where, and that neither can end a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.console import Console
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


def run(log, stdout, script=SCRIPT):
    return subprocess.run([sys.executable, "-c", script, log], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)


def test_only_what_is_said_reaches_the_terminal(tmp_path):
    done = run(tmp_path / "logs" / "rank0.log", subprocess.PIPE)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "before\nsaid, 说\n", b"")
    log = (tmp_path / "logs" / "rank0.log").read_text()
    assert log.startswith("--- rank 0, process ")
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

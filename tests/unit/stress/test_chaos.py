"""The harness of stress/chaos: what it sees and what it compares."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save_file

from stress.chaos import compare, kills
from stress.chaos.record import Journal, Trial, closing_table, detail_table, read
from stress.chaos.session import MARK, RUNNERS_TRACEBACK, find_processes, listening, role_of
from stress.chaos.stops import rank_statuses


def test_the_roles_of_a_run():
    launch = [b"python", b"-u", b"-m", b"deepspeed.launcher.launch", b"--world_info=x", b"train.py"]
    rank = [b"python", b"-u", b"/somewhere/train.py", b"--local_rank=1"]
    assert role_of([b"A=1"], [b"python", b"/bin/deepspeed", b"--num_gpus", b"2", b"train.py"]) == "runner"
    assert role_of([b"A=1"], launch) == "launch"
    assert role_of([b"RANK=1"], rank) == "rank1"
    assert role_of([b"RANK=0"], launch) == "launch"  # a rank between fork and exec
    assert role_of([b"RANK=0"], [b"sh", b"-c", b"true"]) == "other"


def test_an_orphan_is_found_by_its_environment():
    mark = f"test-{os.getpid()}"
    subprocess.run(["sh", "-c", "sleep 60 &"], env=os.environ | {MARK: mark}, check=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    # while the shell's child becomes `sleep`, its environment reads as empty
    while not (found := find_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        assert len(found) == 1
        assert find_processes(mark + "0") == []
    finally:
        for process in found:
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while find_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert find_processes(mark) == []


def test_a_listening_port_is_seen_and_a_closed_one_is_not():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert not listening(port)
        taken.listen()
        assert listening(port)
    assert not listening(port)


RUNNERS = """Traceback (most recent call last):
  File "/venv/bin/deepspeed", line 6, in <module>
    main()
  File "/venv/lib/deepspeed/launcher/runner.py", line 634, in main
    result.wait()
KeyboardInterrupt
"""
OURS = RUNNERS.replace("/venv/bin/deepspeed", "train.py")


@pytest.mark.parametrize(
    ("text", "found"),
    [("step 1\n" + RUNNERS + "saved\n", ""), (RUNNERS + OURS, "Traceback"), (OURS + RUNNERS, "Traceback")],
)
def test_the_launchers_traceback_is_not_the_runs(text, found):
    left = RUNNERS_TRACEBACK.sub("", text)
    assert ("Traceback" in left) == bool(found)


# --- comparing --------------------------------------------------------------------------------------------------------


def make_run(folder, losses, weight=1.0, speed=100):
    from torch.utils.tensorboard import SummaryWriter

    (folder / "model").mkdir(parents=True)
    save_file({"w": np.array([weight, 2.0], np.float32)}, folder / "model" / "model.safetensors")
    rows = [{"step": step, "split": "train", "loss": loss, "tokens_per_second": speed} for step, loss in losses]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"steps": losses[-1][0], "seconds": speed}))
    with SummaryWriter(str(folder / "tensorboard")) as board:
        for step, loss in losses:
            board.add_scalar("train/loss", loss, step)
            board.add_scalar("train/tokens_per_second", speed, step)
    return folder


LOSSES = [(1, 6.0), (2, 5.5), (3, 5.25)]


def test_runs_that_differ_in_their_speed_alone_are_the_same(tmp_path):
    one, other = make_run(tmp_path / "one", LOSSES), make_run(tmp_path / "other", LOSSES, speed=7)
    assert compare.differences(one, other) == []


@pytest.mark.parametrize(
    ("losses", "weight", "words"),
    [
        (LOSSES, 1.0 + 2**-23, ["final weights differ by up to 1.19e-07"]),
        (
            [*LOSSES, LOSSES[-1]],
            1.0,
            ["metrics.jsonl: 0 lines missing and 1 too", "TensorBoard: 0 lines missing and 1"],
        ),
        (
            [LOSSES[0], LOSSES[2]],
            1.0,
            ["metrics.jsonl: 1 lines missing and 0 too many", "TensorBoard: 1 lines missing"],
        ),
        ([LOSSES[0], (2, 5.5000001), LOSSES[2]], 1.0, ["metrics.jsonl: 1 lines missing and 1 too many"]),
    ],
)
def test_what_differs_is_said(tmp_path, losses, weight, words):
    found = compare.differences(make_run(tmp_path / "one", losses, weight), make_run(tmp_path / "other", LOSSES))
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_the_last_step_of_a_file_that_is_being_written(tmp_path):
    run = make_run(tmp_path / "run", LOSSES)
    assert compare.last_step(run) == 3
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    assert compare.last_step(run) == 3
    assert compare.last_step(tmp_path) == 0


# --- plans and tables -------------------------------------------------------------------------------------------------


def test_plans_cover_every_moment_and_target_and_depend_on_the_seed_alone():
    found = kills.plans(50, random.Random(3))
    assert found == kills.plans(50, random.Random(3)) != kills.plans(50, random.Random(4))
    assert len(found) == 50
    targets = Counter(plan.target for plan in found)
    assert set(targets) == set(kills.TARGETS)
    assert max(targets.values()) - min(targets.values()) <= 1
    moments = Counter(plan.moment for plan in found)
    assert set(moments) == set(kills.MOMENTS)
    assert moments["save"] == 15


def test_the_closing_table_counts_what_failed(tmp_path, capsys):
    journal = Journal(tmp_path)
    journal.add(Trial("kills", "first", steps_lost=3, seconds_to_stop=2.25))
    journal.add(Trial("kills", "second", ["it did not start"], steps_lost=5, seconds_to_stop=1.0))
    journal.add(Trial("disk", "third", facts={"said": "full"}))
    assert "FAIL kills: second" in capsys.readouterr().out
    lines = closing_table(read(journal.path)).splitlines()
    assert lines[2:] == ["| kills | 2 | 1 | 5 | 2.2 |", "| disk | 1 | 1 | - | - |", "| all | 3 | 2 | 5 | 2.2 |"]


def test_a_table_of_trials_leaves_out_what_none_of_them_has():
    trials = [Trial("disk", "full", facts={"said": "no space", "log": "1.log"}), Trial("disk", "small", ["it went on"])]
    assert detail_table(trials).splitlines() == [
        "| trial | found |",
        "|---|---|",
        "| full | said no space |",
        "| small **FAILED** | it went on |",
    ]


def test_exit_statuses_of_the_ranks_in_the_launchers_lines():
    assert rank_statuses("[t] Process 5 exits successfully.\n[t] Process 6 exits successfully.") == [0, 0]
    assert rank_statuses("Process 5 exits successfully.\n['python'] exits with return code = -9") == [0, -9]

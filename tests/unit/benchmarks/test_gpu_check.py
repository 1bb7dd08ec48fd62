"""benchmarks/gpu where it needs no card: limits, verdicts, the table."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks.gpu import bench as benches
from benchmarks.gpu import check, sessions, steps
from benchmarks.gpu.bench import Bench, Failed
from benchmarks.gpu.null_driver import numbers_not_real
from benchmarks.gpu.sessions import GIB, Session
from benchmarks.gpu.table import FAILED, NOT_HERE, OK, RAN, WARNED, Line, by_kind, summed_up, table
from benchmarks.gpu.watched import _signalled
from common import hardware
from common.errors import UserError
from training.config.load import load


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, wanted=1, deadline=time.monotonic() + 60)


@pytest.fixture
def null_bench(tmp_path):
    return Bench(tmp_path, wanted=1, null_driver=True, deadline=time.monotonic() + 60)


def test_what_a_null_driver_cannot_answer_is_still_there_to_be_replaced():
    before = hardware._has_gpu_device
    with numbers_not_real():
        assert hardware._has_gpu_device()
    assert hardware._has_gpu_device is before


def test_all_steps_are_planned_for_less_than_nine_minutes():
    assert sum(step.seconds for step in steps.STEPS) < 9 * 60


def test_a_row_stays_a_row():
    line = Line("speed", OK, "10 | 20\n tokens/s", seconds=61.4)
    assert str(line) == "| speed | ok | 10 / 20 tokens/s | 61 |"
    assert table([line]).splitlines()[2:] == [str(line)]
    assert summed_up([line, line, Line("x", FAILED, "")], 5.0, 60.0) == "2 ok, 1 FAILED; 5 s of 60 planned"


def test_kernels_are_told_apart_by_what_they_do():
    names = {
        "turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn": "matrix products",
        "fmha_cutlassF_f16_aligned_64x64_rf_sm75": "attention",
        "ncclDevKernel_AllReduce_Sum_f16_RING_LL": "communication",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "add_norm_forward": "fused kernels",
        "void at::native::vectorized_elementwise_kernel<4, ...>": "other",
    }
    for name, kind in names.items():
        assert by_kind([{"name": name, "ms": 2.0}]) == {kind: 2.0}
    both = by_kind([{"name": "relu", "ms": 1.0}, {"name": "gemm", "ms": 2.0}, {"name": "gelu", "ms": 0.5}])
    assert list(both.items()) == [("matrix products", 2.0), ("other", 1.5)]


def test_a_plan_is_read_from_what_train_says():
    assert sessions.planned_gib("  fits: 3.81 GiB of 14.7 GiB (Tesla T4), 74% free") == 3.81
    assert sessions.planned_gib("  does NOT fit: 512 MiB of 14.7 GiB") == 0.5
    assert math.isnan(sessions.planned_gib("train.py: there is no such file"))


def test_losses_are_judged_where_the_driver_computes(bench, null_bench):
    near = [(1, 8.78, 8.7801), (2, 8.70, 8.72)]
    assert steps._compared(bench, near).verdict == OK
    assert steps._compared(bench, [(1, 8.78, 8.80)]).verdict == FAILED
    assert steps._compared(bench, [*near, (3, 8.0, 8.2)]).verdict == FAILED
    assert steps._compared(bench, [*near, (3, float("nan"), 8.0), (4, 8.0, 8.0)]).verdict == FAILED
    assert steps._compared(bench, []).verdict == FAILED
    line = steps._compared(null_bench, [(1, 1.0, 8.78)])
    assert line.verdict == RAN
    assert NOT_HERE in line.found


@pytest.mark.parametrize(("reserved", "verdict"), [(3.45, OK), (4.55, OK), (4.8, FAILED), (3.2, FAILED)])
def test_memory_may_be_as_far_from_the_plan_as_it_promises(tmp_path, reserved, verdict):
    figures = {"allocated": 3 * GIB, "reserved": (reserved - 0.3) * GIB, "outside": 0.3 * GIB, "retries": 0}
    (tmp_path / "rank0.json").write_text(json.dumps(figures), encoding="utf-8")
    assert steps._memory("memory", Session(tmp_path, [0], 1.0), 4.0).verdict == verdict


def test_a_slower_kernel_is_a_warning_and_a_wrong_one_a_failure(bench):
    good = {"name": "add_norm", "apart": 0.4, "plain_ms": 2.0, "fused_ms": 1.0}
    assert steps._kernel(bench, "fp16", good).verdict == OK
    assert steps._kernel(bench, "fp16", good | {"fused_ms": 3.0}).verdict == WARNED
    assert steps._kernel(bench, "fp16", good | {"apart": 1.2, "fused_ms": 3.0}).verdict == FAILED
    assert steps._kernel(bench, "fp16", {"name": "add_norm", "problem": "CompilationError"}).verdict == FAILED


def test_a_step_that_fails_is_a_line_and_the_rest_goes_on(bench, capsys):
    def first(_bench):
        yield Line("first", OK, "found")
        raise OSError("no space left")

    def late(bench):
        yield Line("late", OK, f"{bench.left:.0f}")

    lines = check.check(bench, [steps.Step(first, 10), steps.Step(late, 10)], 100.0)
    assert [(line.step, line.verdict) for line in lines] == [("first", OK), ("first", FAILED), ("late", OK)]
    assert lines[1].found == "no space left"
    assert lines[2].found in ("59", "60")
    assert capsys.readouterr().out.splitlines()[2:] == [str(line) for line in lines]
    (line,) = check.check(bench, [steps.Step(late, 10)], 0.0)
    assert (line.verdict, line.found) == (FAILED, "no time left")


@pytest.mark.parametrize("processes", [1, 2])
def test_muon_is_tried_with_the_recipe_that_is_shipped(tmp_path, monkeypatch, processes):
    configs = []

    def train(*_args, config, **_more):
        configs.append(config)
        raise Failed("far enough")

    monkeypatch.setattr(Bench, "plan", lambda *_args, config: configs.append(config))
    monkeypatch.setattr(Bench, "train", train)
    monkeypatch.setattr(sessions, "wait", lambda *_args: None)
    with pytest.raises(Failed, match="far enough"):
        next(steps.muon(Bench(tmp_path, wanted=processes)))
    planned, trained = (load(config)["optimizer"]["type"] for config in configs)
    assert planned == trained == "Muon"


def test_the_check_ends_where_there_is_no_gpu(bench):
    def self_check(bench):
        bench.machine["gpus"] = 0
        yield Line("machine", FAILED, "no GPU")

    def data(_bench):
        raise AssertionError

    assert len(check.check(bench, [steps.Step(self_check, 1), steps.Step(data, 1)], 10.0)) == 1


def test_a_process_is_ended_at_its_limit(bench, tmp_path):
    slow = sessions.start(["-c", "import time; time.sleep(60)"], tmp_path / "slow.txt")
    assert sessions.wait([slow], 0.1) == [slow]
    assert slow.returncode == -signal.SIGTERM
    with pytest.raises(Failed, match=r"status 3: out of luck"):
        bench.python("sad", ["-c", "import sys; print('out of luck'); sys.exit(3)"])


def test_ranks_do_not_wait_for_one_that_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "_GRACE", 0.1)
    waiting = sessions.start(["-c", "import time; time.sleep(60)"], tmp_path / "rank0.txt")
    failing = sessions.start(["-c", "raise SystemExit('no memory')"], tmp_path / "rank1.txt")
    assert sessions.wait([waiting, failing], 30.0) == [waiting]
    assert Session(tmp_path, [None, 1], 2.0).problem == "status 1: no memory"
    assert Session(tmp_path, [None, 0], 2.0).problem == "did not end in 2 s"
    assert Session(tmp_path, [0, 0], 2.0).problem == ""


def test_the_signal_comes_in_the_second_micro_batch(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("benchmarks.gpu.watched.os.kill", lambda _pid, number: sent.append((number, len(done))))
    done, note = [], tmp_path / "rank0.signalled"
    session = SimpleNamespace(before_micro_batch=lambda: done.append(1))
    with _signalled(session, signal.SIGTERM, note):
        for _ in range(4):
            session.before_micro_batch()
    assert sent == [(signal.SIGTERM, 2)]
    assert abs(float(note.read_text()) - time.time()) < 60
    session.before_micro_batch()
    assert len(done) == 5


def test_a_folder_of_something_else_is_not_emptied(tmp_path):
    work = check._emptied(tmp_path / "new")
    (work / "old.txt").touch()
    assert [path.name for path in check._emptied(work).iterdir()] == [check.REPORT]
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="name another folder"):
        check._emptied(tmp_path)


def test_the_report_holds_every_line_and_the_status_says_whether_one_failed(tmp_path, monkeypatch, capsys):
    verdict = OK

    def speed(bench):
        yield Line("speed", verdict, str(bench.processes), {"auto": 1.0})

    monkeypatch.setattr(check, "STEPS", (steps.Step(speed, 30),))
    monkeypatch.setattr(check, "NEEDED", ())
    flags = ["--work", str(tmp_path / "work"), "--processes", "2", "--only", "speed", "--minutes", "1"]
    assert check.main(flags) == 0
    report = json.loads((tmp_path / "work" / check.REPORT).read_text(encoding="utf-8"))
    assert report["lines"] == [{"step": "speed", "verdict": OK, "found": "2", "figures": {"auto": 1.0}, "seconds": 0.0}]
    printed = capsys.readouterr().out
    assert printed.startswith("1 steps, planned for 60 s of 60: speed 60")
    assert printed.count("| speed | ok | 2 | 0 |") == 2  # as it comes, and in the table at the end
    verdict = FAILED
    assert check.main(flags) == 1


def test_flags_of_a_batch():
    flags = benches.batch(2, 32, 4, "bf16.enabled=true")
    assert flags[0] == "--set"
    assert set(flags[1:]) == {
        "train_batch_size=256",
        "train_micro_batch_size_per_gpu=32",
        "gradient_accumulation_steps=4",
        "bf16.enabled=true",
    }


def test_weights_are_removed_and_logs_stay(bench):
    run = bench.work / "muon" / "run"
    for part in ("checkpoints", "model", "logs"):
        (run / part).mkdir(parents=True)
    bench.tidy()
    assert [path.name for path in run.iterdir()] == ["logs"]
    assert sys.version.startswith(benches.python_version())


def test_it_uses_two_gpus_at_most(tmp_path):
    assert [Bench(tmp_path, machine={"gpus": count}).processes for count in (1, 2, 8)] == [1, 2, 2]
    assert Bench(tmp_path, wanted=1, machine={"gpus": 8}).processes == 1

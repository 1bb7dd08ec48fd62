"""`train.py --tune` on this machine: a real trial, in a process of its own."""

import json
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_trial_is_measured_on_rows_of_the_data(processes, flags, train_py, workplace):
    config = train_py.parent / "ds_configs" / "t4x1.json"
    given = flags("runs/tuned", "--deepspeed_config", config, "--tune", "0.01")
    # not forked as other tests are: multiprocessing lets no such process start others
    done = processes.finish(processes.start([sys.executable, "-B", train_py, *given]))
    assert done.status == 0, done.output
    report = json.loads((workplace / "runs" / "tuned" / "tune.json").read_text(encoding="utf-8"))
    (trial,) = report["trials"]  # there is no time for a second one
    assert trial["problem"] is None
    assert trial["tokens_per_second"] > 0
    assert 0.05 < trial["peak_gib"] < 8
    assert report["changes"] == {}
    assert "stays: nothing was faster every time" in done.output

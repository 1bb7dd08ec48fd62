"""A run that is interrupted where it is awkward, and continued, is the run that nobody interrupted."""

import json
from pathlib import Path

import pytest

from sample_stories import generate_stories

pytestmark = pytest.mark.slow
WORKER = Path(__file__).resolve().parents[1] / "workers" / "worker_interrupt.py"
TIMES = {"tokens_per_second", "probe_seconds", "seconds"}
# four micro-batches a process and step, and lines of metrics that a stop finds half full
PACE = [
    "--epochs",
    "1.5",
    "--log_interval",
    "4",
    "--eval_interval",
    "8",
    "--sample_interval",
    "13",
    "--save_interval",
    "10",
    "--set",
    "train_micro_batch_size_per_gpu=1",
    "gradient_accumulation_steps=4",
    "train_batch_size=8",
]


@pytest.fixture(scope="module")
def run(processes, flags, workplace):
    """`run(name, place, step, *flags)`: its folder; 2 processes, experts on both of them."""
    lines = [json.dumps({"text": story}, ensure_ascii=False) for story in generate_stories(40, seed=3)]
    (workplace / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def start(name, place, step, *more):
        arguments = list(flags(f"runs/{name}", "--data", "few.jsonl", "--ep_size", "2", *PACE, *more))
        at = arguments.index("--max_steps")
        del arguments[at : at + 2]  # --epochs instead
        done = processes.ranks(2, [WORKER, place, str(step), *arguments], PYTHONPATH=WORKER.parents[2])
        assert done.status == 0, done.output
        return workplace / "runs" / name, done.output

    return start


@pytest.fixture(scope="module")
def uninterrupted(run):
    return run("uninterrupted", "never", 0)[0]


def rows(folder, name):
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in (folder / name).read_text(encoding="utf-8").splitlines()
    ]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_run_goes_beyond_an_epoch(uninterrupted):
    steps, record = summary(uninterrupted)["total_steps"], json.loads((uninterrupted / "run.json").read_text())
    assert record["flags"]["epochs"] == 1.5
    assert 20 < steps < 40


def test_it_ends_as_if_nothing_had_happened(run, uninterrupted):
    """One run, interrupted in an evaluation, and in an accumulation at the last step of an epoch."""
    total = summary(uninterrupted)["total_steps"]
    places = [("evaluation", 16), ("accumulation", round(total / 1.5))]
    assert 16 < places[1][1] < total
    before = 0
    for place, step in places:
        folder, said = run("often-interrupted", place, step)
        assert not before or f"(step {before})" in said
        assert summary(folder)["steps"] == step
        assert summary(folder)["reason"] == "enough"
        assert "the same command continues the run" in said
        evaluated = {row["step"] for row in rows(folder, "metrics.jsonl") if row["split"] == "val"}
        assert evaluated == {at for at in (0, 8, 16) if at < step}  # the one that was given up is not there
        before = step
    folder, said = run("often-interrupted", "never", 0)
    assert f"(step {before})" in said
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert rows(folder, file) == rows(uninterrupted, file)
    assert (folder / "model/model.safetensors").read_bytes() == (uninterrupted / "model/model.safetensors").read_bytes()
    same = {**summary(folder), **dict.fromkeys(TIMES)}
    assert same == {**summary(uninterrupted), **dict.fromkeys(TIMES)}

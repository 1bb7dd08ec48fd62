"""The arithmetic of benchmarks/speed/scaling: what is sent, what counts, what the table says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed import scaling
from benchmarks.speed.scaling_child import PAYLOADS, Counted, nbytes


def run(speeds, sizes, *, seconds=1.0, waiting=0.1):
    step = {
        "seconds": seconds,
        "processor": seconds - waiting,
        "waiting": waiting,
        "bytes": sizes,
        "calls": dict.fromkeys(sizes, 2),
    }
    return {
        "tokens_per_second": speeds,
        "ranks": [{"peak_bytes": 100 + rank, "steps": [step] * len(speeds)} for rank in range(2)],
    }


def test_payloads_are_counted_by_name_wherever_the_tensor_stands():
    counted = Counted()
    reduce = counted.wrap("all_reduce", lambda tensor, op=None: tensor)
    gather = counted.wrap("all_gather", lambda tensor_list, tensor, group=None: None)
    reduce(torch.zeros(10))
    reduce(tensor=torch.zeros(5, dtype=torch.bfloat16))
    gather([torch.zeros(3), torch.zeros(3)], torch.zeros(3))
    assert counted.bytes == {"all_reduce": 50, "all_gather": 24}
    assert counted.calls == {"all_reduce": 2, "all_gather": 1}
    assert counted.seconds > 0


def test_a_collective_that_fails_is_counted_and_still_fails():
    def fails(tensor):
        raise RuntimeError("gone")

    counted = Counted()
    with pytest.raises(RuntimeError, match="gone"):
        counted.wrap("broadcast", fails)(torch.zeros(2))
    assert counted.bytes == {"broadcast": 8}


def test_every_counted_collective_exists():
    import torch.distributed as dist

    assert [name for name in PAYLOADS if not hasattr(dist, name)] == []
    assert nbytes([torch.zeros(2), [torch.zeros(1, dtype=torch.float64)]]) == 16


@pytest.mark.parametrize(
    ("payload", "processes", "expected"),
    [
        ({"all_reduce": 100}, 1, 0),
        ({"all_reduce": 100}, 2, 100),
        ({"all_reduce": 100}, 4, 150),
        ({"reduce_scatter_tensor": 100, "all_gather_into_tensor": 100}, 4, 150),
        ({}, 2, 0),
    ],
)
def test_bytes_of_a_ring(payload, processes, expected):
    assert scaling.sent(payload, processes) == expected


def test_the_ideal_is_an_all_reduce_of_everything():
    assert scaling.ideal_sent(50, 2, 2) == scaling.sent({"all_reduce": 100}, 2)


def test_first_steps_do_not_count():
    case = scaling.TWO
    tokens = case.batch * scaling.SIZES["max_seq_len"]
    found = scaling.summary(case, [run([1, 1, tokens, 2 * tokens, 4 * tokens], {"all_reduce": 100})])
    assert found["milliseconds"] == pytest.approx(500)
    assert found["best_milliseconds"] == pytest.approx(250)
    assert found["peak_bytes"] == 101
    assert found["sent"] == 100


def lines(one, two):
    tokens = scaling.BASE.batch * scaling.SIZES["max_seq_len"]
    return [
        {
            "group": case.group,
            "title": case.title,
            "processes": case.processes,
            "threads": 1,
            "batch": case.batch,
            **scaling.summary(
                case,
                [run([1, 1, tokens / seconds], {"all_reduce": 8}, seconds=seconds, waiting=0) for seconds in times],
            ),
        }
        for case, times in ((scaling.BASE, one), (scaling.TWO, two))
    ]


def test_efficiency_of_two_processes():
    found = scaling.efficiency(lines([4.0, 4.4], [2.5, 2.2]))
    assert found["worst_pair"] == pytest.approx(0.8)
    assert found["best_pair"] == pytest.approx(1.0)
    assert found["best"] == pytest.approx(4.0 / 4.4)
    assert scaling.efficiency(lines([4.0], [2.0])[:1]) is None


def test_the_table_says_whether_the_aim_is_reached_and_repeats_a_refusal():
    refused = {"group": "ZeRO", "title": "ZeRO-3", "processes": 2, "threads": 1, "batch": 16, "refused": "not so"}
    for two, word in ((2.1, "reached"), (2.6, "missed")):
        measured = lines([4.0], [two])
        result = {
            "cores": 2,
            "config": "x.json",
            "skipped_steps": 2,
            "parameters": 1e6,
            "ideal_sent": 1e6,
            "aim": 0.9,
            "lines": [*measured, refused],
            "efficiency": scaling.efficiency(measured),
        }
        text = "\n".join(scaling.table(result))
        assert word in text
        assert "ZeRO-3 | 16 | refused: not so" in text


def test_every_case_divides_its_batch():
    for case in scaling.CASES:
        assert case.batch % (case.processes * case.accumulation) == 0


def test_what_a_refused_run_said():
    said = ["starting", "train.py: x.json: 1 problem, nothing was started.", "  1. zero_optimization.stage: not 3", ""]
    assert scaling.refusal(said, 2) == "zero_optimization.stage: not 3"
    assert scaling.refusal(said[:2], 2) == said[1]
    assert scaling.refusal(["starting", "killed", ""], 1) == "killed"
    assert "still running" in scaling.refusal([], None)

"""Two machines, both played by this one: a launcher each, without ssh, that meet at the loopback address."""

import json

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(processes, flags, workplace, free_port):
    """The two launchers' common end, and the run's folder."""
    (workplace / "hostfile").write_text("first-machine slots=1\nsecond-machine slots=1\n")
    port = str(free_port())
    launchers = [
        processes.launcher(
            "--hostfile",
            "hostfile",
            "--no_ssh",
            "--node_rank",
            str(rank),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            port,
            arguments=flags("runs/nodes"),
        )
        for rank in (0, 1)
    ]
    done = processes.finish(*launchers)
    assert done.status == 0, done.output
    return done, workplace / "runs" / "nodes"


def rows(run, split):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["split"] == split]


@pytest.mark.parametrize("split", ["train", "val"])
def test_two_nodes_have_the_loss_of_one_with_two_processes(nodes, finished_run, split):
    ours, expected = rows(nodes[1], split), rows(finished_run, split)
    assert [row["step"] for row in ours] == [row["step"] for row in expected]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


def test_two_nodes_train_the_same_weights(nodes, finished_run):
    ours, expected = (load_file(run / "model" / "model.safetensors") for run in (nodes[1], finished_run))
    assert ours.keys() == expected.keys()
    assert max((ours[name] - expected[name]).abs().max().item() for name in ours) < 1e-5


def test_only_the_first_node_speaks(nodes):
    output = nodes[0].output
    assert output.count("不复读: 2 processes") == 1
    assert output.count("finished: 12 of 12 steps") == 1

"""Two machines without root: two addresses of this one, a launcher each, no ssh. (test_two_machines.py needs root.)"""

import json
import re
import shutil
import sys

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(processes, flags, workplace, free_port):
    """The two launchers' common end, and the run's folder."""
    (workplace / "hostfile").write_text("127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    port = str(free_port())
    launchers = [
        processes.launcher(
            "--hostfile",
            "hostfile",
            "--no_ssh",
            "--node_rank",
            str(rank),
            "--master_addr",
            "127.0.0.2",
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


# --- ranks that were not started alike --------------------------------------------------------------------------------


@pytest.fixture
def pair(processes_in, train_py, workplace, tmp_path, free_port):
    """`pair(flags of rank 0, flags of rank 1)`: statuses and output; rank 1 works in tmp_path, with the same runs."""
    (tmp_path / "runs").symlink_to(workplace / "runs")
    shared = {"WORLD_SIZE": 2, "LOCAL_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.2", "OMP_NUM_THREADS": 1}

    def start(*flags):
        port = free_port()
        running = [
            processes_in(folder).start([sys.executable, train_py, *flags[rank]], **shared, MASTER_PORT=port, RANK=rank)
            for rank, folder in enumerate((workplace, tmp_path))
        ]
        processes_in(workplace).finish(*running)
        said = [line for process in running for line in process.output.splitlines() if line.startswith("train.py: ")]
        return [process.returncode for process in running], said

    return start


def test_another_seed_on_one_rank_is_refused_on_both(pair, flags, workplace, tmp_path):
    shutil.copy(workplace / "stories.jsonl", tmp_path)
    statuses, said = pair(flags("runs/seeds"), flags("runs/seeds", "--seed", "7"))
    assert statuses == [2, 2]
    assert all("flags.seed is 7 there and 42 here" in line for line in said), said


def test_another_corpus_on_one_machine_is_refused_on_both(pair, flags, finished_run, workplace, tmp_path):
    corpus = next((workplace / "data").glob("stories-*"))
    other = tmp_path / corpus.relative_to(workplace)
    shutil.copytree(corpus, other)
    shutil.copy(workplace / "stories.jsonl", tmp_path)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest))  # without its line breaks
    statuses, said = pair(flags("runs/corpora"), flags("runs/corpora"))
    assert statuses == [2, 2]
    [line] = said
    assert "differs from rank 0" in line
    assert "manifest.json is " in line


def test_runs_that_are_not_shared_are_refused_though_an_old_lock_is_there(pair, flags, workplace, tmp_path):
    (tmp_path / "runs").unlink()
    (tmp_path / "runs" / "apart").mkdir(parents=True)
    (tmp_path / "runs" / "apart" / "lock").write_text('{"host": "mB", "pid": 1, "token": "of another run"}')
    (tmp_path / "data").symlink_to(workplace / "data")
    shutil.copy(workplace / "stories.jsonl", tmp_path)
    statuses, said = pair(flags("runs/apart"), flags("runs/apart"))
    assert statuses == [2, 2]
    [line] = said
    assert "runs/apart on " in line
    assert "is not the folder of that name" in line


# --- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def torchrun(processes, train_py, flags, free_port):
    """`torchrun(output, flags of rank 1 alone)`: a node for each rank; statuses, and what each says."""

    def start(output, *different):
        place = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", free_port()]
        command = [sys.executable, "-m", "torch.distributed.run", *map(str, place)]
        nodes = [
            processes.start([*command, "--node_rank", str(node), train_py, *flags(output, *own)])
            for node, own in enumerate([(), different])
        ]
        processes.finish(*nodes)
        return [node.returncode for node in nodes], [node.output for node in nodes]

    return start


def test_torchrun_starts_two_nodes(torchrun, workplace):
    statuses, said = torchrun("runs/torchrun")
    assert statuses == [0, 0], said
    assert json.loads((workplace / "runs/torchrun/summary.json").read_text())["reason"] == "finished"


@pytest.mark.parametrize(
    ("different", "why"),
    [
        (("--seed", "7"), "was not started as rank 0 on .* was: flags.seed is 7 there and 42 here: start all with "),
        (("--data", "nowhere.jsonl"), "cannot take part: --data nowhere.jsonl: there is no such file or folder"),
    ],
)
def test_rank_0_of_torchrun_does_not_wait_for_one_that_was_refused(torchrun, different, why):
    statuses, said = torchrun("runs/refused", *different)
    assert statuses == [1, 1]  # torchrun has no other
    assert re.search(rf"train\.py: rank 1 \(process \d+ on \S+\) {why}", said[0]), said[0]
    assert f"train.py: {'rank 1' if different[0] == '--seed' else '--data nowhere'}" in said[1]

"""Which process this is, by the variables of launchers other than DeepSpeed's, and what watches over it."""

import base64
import json
from types import SimpleNamespace

import pytest

from common.errors import UserError
from training.processes import launchers
from training.processes.launchers import rank_variables, rendezvous_port

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_PROCID": "4",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3,2(x2)",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "1234",
}


def place(rank, size, local_rank, local_size, address, port="29500"):
    return {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local_rank,
        "LOCAL_SIZE": local_size,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (OPEN_MPI, place("3", "4", "1", "2", "10.0.0.1")),
        (MPICH, place("1", "2", "1", "2", "127.0.0.1")),
        (SLURM, place("4", "7", "1", "2", "node1", "1234")),
        (SLURM | OPEN_MPI, place("3", "4", "1", "2", "10.0.0.1", "1234")),  # mpirun in a job of Slurm
    ],
)
def test_the_place_of_a_process_of_mpirun_and_srun(environment, expected):
    assert rank_variables(environment) == expected


@pytest.mark.parametrize("environment", [{}, {"SLURM_NTASKS": "1"}, SLURM | {"RANK": "0"}])
def test_one_process_and_those_of_deepspeed_are_left_alone(environment):
    assert rank_variables(environment) == {}


@pytest.mark.parametrize("missing", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"])
def test_one_of_several_that_cannot_tell_which_is_refused(missing):
    environment = {name: value for name, value in OPEN_MPI.items() if name != missing}
    with pytest.raises(UserError, match=r"^OMPI_COMM_WORLD_SIZE=4, and neither RANK nor .* unset OMPI_COMM_WORLD_SIZE"):
        rank_variables(environment)


def test_the_script_of_a_batch_job_is_refused():
    """sbatch sets these for its script too, which srun has not started."""
    with pytest.raises(UserError, match=r"^SLURM_NTASKS=4, "):
        rank_variables({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "4"})


@pytest.mark.parametrize(("environment", "how"), [(OPEN_MPI, "mpirun -x"), (SLURM, "scontrol show hostnames")])
def test_several_machines_need_the_address_of_the_first(environment, how):
    environment = {name: value for name, value in environment.items() if name != "MASTER_ADDR"}
    with pytest.raises(UserError, match=rf"^MASTER_ADDR is not set: .*{how}"):
        rank_variables(environment)


def process(name, *words, ppid=5):
    return SimpleNamespace(name=lambda: name, cmdline=lambda: list(words), ppid=lambda: ppid)


LAUNCH = process("python", "python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=e30=", "train.py")
RUNNER = process("deepspeed", "python", "/venv/bin/deepspeed", "train.py")
SHELL = process("bash", "bash", "-c", "cd /x; python -u -m deepspeed.launcher.launch --world_info=e30= train.py")
SSHD = process("sshd", "sshd: root@notty")
LOGIN = process("bash", "-bash")


@pytest.mark.parametrize(
    ("parents", "watched"),
    [
        ([LAUNCH, RUNNER, LOGIN, SSHD], [LAUNCH, RUNNER]),  # one may log out, as with nohup or tmux
        ([LAUNCH, SHELL, SSHD], [LAUNCH, SSHD]),  # pdsh
        ([LAUNCH, SSHD], [LAUNCH, SSHD]),
        ([LAUNCH, LOGIN, SSHD], [LAUNCH]),
        ([LOGIN, SSHD], []),
        ([], []),
    ],
)
def test_what_must_live_for_a_rank_to_go_on(monkeypatch, parents, watched):
    monkeypatch.setattr(launchers.psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    assert launchers.find_launchers() == watched


def test_the_hostfile_is_known_from_the_launcher(monkeypatch):
    world = base64.urlsafe_b64encode(json.dumps({"mA": [0, 1], "mB": [], "mC": [0]}).encode()).decode()
    launch = process("python", "python", "-m", "deepspeed.launcher.launch", f"--world_info={world}")
    monkeypatch.setattr(launchers.psutil, "Process", lambda: SimpleNamespace(parents=lambda: [launch]))
    assert launchers.hosts_of_ranks() == ["mA", "mA", "mC"]
    assert launchers.idle_hosts() == ["mB"]


@pytest.mark.parametrize(
    ("variables", "found", "died"),
    [
        ({}, [], False),  # no launcher at all
        ({"CROSS_RANK": "0", "CROSS_SIZE": "1"}, [], True),
        ({"CROSS_RANK": "0", "CROSS_SIZE": "1"}, [process("python", ppid=1)], True),
        ({"CROSS_RANK": "0", "CROSS_SIZE": "2"}, [process("python", ppid=1)], False),  # process 1 of a container
        ({"CROSS_RANK": "0", "CROSS_SIZE": "2", "SSH_CONNECTION": "a"}, [process("python", ppid=1)], True),
        ({"CROSS_RANK": "0", "CROSS_SIZE": "2", "SSH_CONNECTION": "a"}, [LAUNCH, SSHD], False),
    ],
)
def test_a_launcher_that_died_while_the_libraries_were_imported(monkeypatch, variables, found, died):
    for name in ("CROSS_RANK", "CROSS_SIZE", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launchers.launcher_died_early(found) == died


@pytest.mark.parametrize("port", ["29500;", "0", "70000"])
def test_a_port_that_is_none_is_named(port, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match=f"MASTER_PORT in the environment is '{port}'"):
        rendezvous_port()

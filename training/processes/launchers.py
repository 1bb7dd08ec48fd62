"""What started this process: the variables that launchers set, and the processes above this one."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from common.errors import UserError
from common.files import printable

DEFAULT_PORT = "29500"  # DeepSpeed's and PyTorch's
_LAUNCHED = "CROSS_RANK"  # set by deepspeed.launcher.launch for its processes, and by nothing else
_LAUNCH, _RUNNER = "deepspeed.launcher.launch", "deepspeed.launcher.runner"
# rank, number of processes, and the same on the machine; Slurm's are set by srun, and not for sbatch's own script
_VARIABLES = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}
_SIZES = (*(names[1] for names in _VARIABLES.values()), "SLURM_NTASKS")


# --- variables --------------------------------------------------------------------------------------------------------


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, ... for a process that mpirun or srun has started; nothing where RANK is set, or alone.

    Raise UserError if it is one of several and the variables do not say which, or where rank 0 is.
    """
    sizes = {name: environment[name] for name in _SIZES if environment.get(name, "1") != "1"}
    if "RANK" in environment or not sizes:
        return {}
    for launcher, names in _VARIABLES.items():
        if all(name in environment for name in names):
            rank, size, local_rank, local_size = (environment[name] for name in names)
            if launcher == "Slurm":
                local_size = _tasks_of_node(local_size, environment.get("SLURM_NODEID", "0"))
            variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
            return variables | _master(environment, launcher, several_machines=size != local_size)
    name, value = next(iter(sizes.items()))
    raise UserError(
        f"{name}={value}, and neither RANK nor the variables of mpirun or srun say which of these processes this is: "
        f"start it with deepspeed, mpirun or srun, or unset {name} to train with this process alone"
    )


def _tasks_of_node(counts: str, node: str) -> str:
    """Return the entry of a node in Slurm's list of tasks, such as 2(x3),1; the list itself if it is another kind."""
    expanded: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        expanded += [count] * int(times or 1)
    return expanded[int(node)] if node.isdecimal() and int(node) < len(expanded) else counts


def _master(environment: Mapping[str, str], launcher: str, *, several_machines: bool) -> dict[str, str]:
    given = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment}
    if several_machines and "MASTER_ADDR" not in given:
        how = {
            "Open MPI": "mpirun -x MASTER_ADDR=10.0.0.1 (deepspeed --launcher_args does that, too)",
            "MPICH": "mpirun -genv MASTER_ADDR 10.0.0.1",
            "Slurm": 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1), before srun',
        }
        raise UserError(f"MASTER_ADDR is not set: give the address of the machine with rank 0, as by {how[launcher]}")
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": DEFAULT_PORT} | given


def count_from_environment(name: str, default: int, least: int = 0, most: int = 2**20) -> int:
    """Return a count that a launcher has set; UserError for one that cannot be, such as one left by an earlier job."""
    text = os.environ.get(name) or str(default)
    if re.fullmatch(r"[0-9]{1,7}", text) is None or not least <= int(text) <= most:
        raise UserError(
            f"{name} in the environment is {printable(text, 40)!r} and must be a whole number from {least} to {most}: "
            "start with deepspeed or torchrun, which set it, or unset it with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE"
        )
    return int(text)


def rendezvous_port() -> int:
    """Return the port at which rank 0 listens: MASTER_PORT, or the next one where torchrun's agent has that itself."""
    agent_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return count_from_environment("MASTER_PORT", int(DEFAULT_PORT), least=1, most=65535) + agent_listens


# --- processes --------------------------------------------------------------------------------------------------------


def find_launchers() -> list[psutil.Process]:
    """Return what must live for this process to go on: launch.py, and the `deepspeed` command or the sshd above it."""
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        parents = psutil.Process().parents()
        if parents and _LAUNCH in parents[0].cmdline():
            found.append(parents.pop(0))
            if len(parents) > 1 and _LAUNCH in " ".join(parents[0].cmdline()):  # the shell that sshd gave the command
                del parents[0]
            if parents and _has_started_launch(parents[0]):
                found.append(parents[0])
    return found


def _has_started_launch(process: psutil.Process) -> bool:
    words = process.cmdline()
    named = any(Path(word).name == "deepspeed" for word in words[:4])
    return named or _RUNNER in words or process.name().startswith("sshd")


def launcher_died_early(found: list[psutil.Process]) -> bool:
    """Return whether a part of the launcher was killed while this process imported its libraries."""
    if _LAUNCHED not in os.environ:
        return False
    with suppress(psutil.Error):
        watched_above = os.environ.get("CROSS_SIZE") == "1" or "SSH_CONNECTION" in os.environ
        return not found or (len(found) == 1 and watched_above and found[0].ppid() == 1)
    return True


def launcher_identity() -> str:
    """Return what the processes of one launch.py have in common, and those of no other have; empty without one."""
    with suppress(psutil.Error):
        if found := find_launchers():
            return f"{found[0].pid} {found[0].create_time()}"
    return ""


def machine_index() -> int:
    """Return the number of this machine in the hostfile; 0 without DeepSpeed's launcher."""
    return int(os.environ.get(_LAUNCHED, "0"))


def hosts_of_ranks() -> list[str]:
    """Return the name that the hostfile has for the machine of each rank; nothing if the launcher does not tell."""
    return [host for host, slots in _slots().items() for _ in slots]


def idle_hosts() -> list[str]:
    """Return the machines of the hostfile that have no slot."""
    return [host for host, slots in _slots().items() if not slots]


def _slots() -> dict[str, list[int]]:
    with suppress(psutil.Error, ValueError):
        for process in find_launchers()[:1]:
            for word in process.cmdline():
                if word.startswith("--world_info="):
                    return json.loads(base64.urlsafe_b64decode(word.partition("=")[2]))
    return {}
